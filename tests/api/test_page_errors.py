"""Tests the errors that a user sees in a browser: which words, where, and what becomes of the unanswered question."""

import base64
import json

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.api.limits import Limits

from .browser import CHROMIUM, DROP
from .conversing import SIZES, WIDE, answers, ask, fits, noise, opened, read, send
from .running import Process, picture, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@SIZES
def test_errors_stand_beside_the_composer_until_the_next_send(browser, server, size):
    page = opened(browser, server.url, size)
    answers(page, "A star. " * 200)
    ask(page, "Tell me a story.")
    page.js("window.fetch = window.real")
    page.drop(("star.png", picture("shape.png")), ("holiday notes.txt", b"words, and no picture"))
    ask(page, "What is this?")
    error = read(page, "#error")
    assert page.shows("#error") and page.shows("#ask") and fits(page)
    assert error.startswith("“holiday notes.txt” cannot be read as a picture.") and "messages[" not in error
    assert page.js("document.getElementById('question').value") == "What is this?", "given back"
    assert page.js("document.querySelectorAll('.user').length") == 1, "not part of the conversation"
    page.click("#attached > :last-child button")
    page.wheel(-300)
    page.until("!document.getElementById('newest').hidden")
    assert page.shows("#error"), "still there"
    answers(page, "A cross.")
    page.js("document.getElementById('question').focus()")
    page.press("Enter")
    page.until("document.querySelectorAll('.answer').length === 2 && document.getElementById('stop').hidden")
    assert read(page, "#error") == "" and [part["type"] for part in page.js("asked")[-1]["content"]] == [
        "image_url",
        "text",
    ]


PLACES = {
    "a picture of an earlier turn": ("messages[0].content[1].image_url.url", "“two.png”"),
    "the first of this turn": ("messages[2].content[0].image_url.url", "“two.png (2)”"),
    "the text": ("messages[2].content[1].text", "The question"),
    "an earlier text": ("messages[0].content[2].text", "An earlier question"),
    "an answer": ("messages[1].content", "The answer"),
}


@pytest.mark.parametrize("place, name", PLACES.values(), ids=PLACES)
def test_errors_name_the_part_of_the_conversation(page, place, name):
    answers(page, "Two pictures.")
    page.drop(("one.png", picture("shape.png")), ("two.png", picture("count.png")))
    ask(page, "What are these?")
    page.drop(("x.png", picture("word.png")))
    page.click("#attached button")
    page.drop(("two.png", picture("word.png")), ("two.png", picture("digit.png")))
    page.click("#attached button")
    answers(page, ending="error", error={"message": f"{place}: size: too odd", "code": "odd", "param": place})
    ask(page, "And this?")
    assert read(page, "#error p:first-child") == f"{name}: too odd"


def test_pictures_that_are_too_large_together(browser):
    with serving(limits=Limits(max_body=20_000)) as server:
        page = opened(browser, server.url)
        page.drop(("star.png", picture("shape.png")))
        page.js("JSON.stringify = (real => value => real(value) + ' '.repeat(20_000))(JSON.stringify)")
        ask(page, "What is this?")
        assert read(page, "#error").startswith("The pictures are too large together: send fewer, or smaller ones.")
        assert page.shows("#error") and page.js("document.querySelectorAll('#attached img').length") == 1


def refused(page, *files):
    """Drop files of which none is taken."""
    page.js(DROP % json.dumps([(name, base64.b64encode(data).decode()) for name, data in files]))
    page.until("document.querySelector('#error p')")


def test_a_picture_over_the_limits_is_refused_when_it_is_dropped(browser):
    with serving(limits=Limits(max_body=20_000, max_images=2)) as server:
        page = opened(browser, server.url)
        page.js("window.fetch = () => { throw new Error('nothing may be sent') }")
        large = noise(300, 300)
        refused(page, ("noise.png", large))
        assert read(page, "#error p:first-child") == "“noise.png” is too large."
        said = f"{len(large) / 1e6:.3f} MB, and this conversation has room for 0.015 MB · image_too_large"
        assert said in read(page, "#error") and page.shows("#error")
        page.drop(("one.png", picture("shape.png")), ("two.png", picture("shape.png")))
        refused(page, ("three.png", picture("shape.png")))
        page.until("document.querySelector('#error').textContent.includes('three')")
        said = "“three.png”: one picture too many, this server takes 2 in one conversation"
        assert read(page, "#error p:first-child") == said
        assert page.js("document.querySelectorAll('#attached img').length") == 2


def test_a_conversation_that_is_too_long(page):
    ask(page, "word " * 3000)
    assert read(page, "#error").startswith("This conversation is longer than the model's context.")
    assert page.shows("#error") and page.shows("#send")


def test_a_connection_lost_in_mid_answer(page):
    answers(page, "A small ", "red ", ending="cut")
    page.drop(("star.png", picture("shape.png")))
    send(page, "Describe it.")
    page("Input.insertText", text="Meanwhile")
    page.until("document.querySelector('#error p')")
    assert read(page, "#error") == "The connection ended before the answer did. Is the server still running?"
    assert "not part of the conversation" in read(page, ".answer .note") and page.shows("#error")
    assert page.js("document.getElementById('question').value") == "Describe it.\nMeanwhile", "nothing typed is lost"
    assert page.js("document.querySelectorAll('#attached img').length") == 1


def test_a_server_that_does_not_answer(browser):
    with Process() as process:
        page = opened(browser, process.url)
        process.process.kill()
        process.process.wait()
        ask(page, "Anybody there?")
    assert read(page, "#error") == "The server does not answer. Is it still running?" and page.shows("#error")
    assert page.js("document.getElementById('question').value") == "Anybody there?"


def test_a_model_that_was_unloaded(browser):
    with serving() as server:
        page = opened(browser, server.url)
        assert "knows drawn shapes, digits and words, nothing else" in read(page, "#model")
        server.models.drop()
        ask(page, "Anybody there?")
        assert read(page, "#error").startswith("No model is loaded on this server.") and page.shows("#error")
        page.until("document.getElementById('model').textContent === 'no model is loaded'")


def test_a_wrong_key(browser):
    with serving(api_key="right") as server:
        browser.open(server.url, **WIDE)
        browser.until("document.activeElement.id === 'secret'")
        assert read(browser, "#error") == ""
        browser("Input.insertText", text="wrong")
        browser.press("Enter")
        browser.until("document.querySelector('#error p')")
        assert read(browser, "#error").startswith(
            "The server refused the API key. Put the right one into the field at the top"
        )
        assert browser.shows("#secret") and browser.js("document.activeElement.id") == "secret"


INSTEAD = "Something else answered in place of the server, perhaps a proxy between."
REPLIES = {
    "busy": (429, {"retry-after": "2"}, {"message": "busy: full", "code": "server_busy"}, "ask again in 2 seconds"),
    "a proxy's page": (502, {}, "<html>Bad Gateway</html>", INSTEAD),
    "other JSON": (404, {}, '{"detail": "Not Found"}', INSTEAD),
    "a page instead of a stream": (200, {"content-type": "text/html"}, "<html>Log in</html>", INSTEAD),
    "a broken event": (200, {}, "data: {oh\n\n", INSTEAD),
    "a bad parameter": (
        400,
        {},
        {"message": "temperature: expected at most 2", "code": "odd"},
        "Temperature: expected",
    ),
    "the end": (503, {}, {"message": "shutting down", "code": "shutting_down"}, "Ask again when it is back."),
}


@pytest.mark.parametrize("status, headers, body, words", REPLIES.values(), ids=REPLIES)
def test_every_error_is_said_in_words(page, status, headers, body, words):
    init = json.dumps({"status": status, "headers": headers})
    text = body if isinstance(body, str) else json.dumps({"error": body})
    page.js(f"window.fetch = async () => new Response({json.dumps(text)}, {init})")
    ask(page, "What is this?")
    assert words in read(page, "#error p:first-child") and page.shows("#error")
    assert page.js("document.getElementById('question').value") == "What is this?"
