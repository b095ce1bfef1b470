"""Tests what the page keeps and lets its user change: settings, the conversation, a question asked anew."""

import json

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from .browser import CHROMIUM
from .conversing import WIDE, answers, ask, read, send
from .running import picture

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


SMALL = """Storage.prototype.setItem = (real => function (name, text) {
  if (text.length > 2000) throw new DOMException("", "QuotaExceededError");
  real.call(this, name, text);
})(Storage.prototype.setItem)"""
LISTEN = """window.fetch = (real => (path, options) => {
  if (options?.body) window.body = JSON.parse(options.body);
  return real(path, options);
})(window.fetch)"""


def reload(page, url):
    page.open(url, **WIDE)
    page.until("document.querySelectorAll('#samples img').length === 8")


def words(page):
    return page.js("[...document.querySelectorAll('.user > p, .answer > p')].map(line => line.textContent)")


def test_a_conversation_survives_a_reload_until_it_is_cleared(page, server):
    page.drop(("star.png", picture("shape.png")))
    answers(page, "A star.", warnings=["messages[0].content[0].image_url.url: odd"])
    ask(page, "What is this?")
    reload(page, server.url)
    assert words(page) == ["What is this?", "A star."] and "“star.png”: odd" in read(page, ".answer .note")
    page.until("document.querySelector('.user img').naturalWidth > 0")
    assert page.shows("#over")
    answers(page, "Red.")
    ask(page, "Which colour?")
    assert [m["role"] for m in page.js("asked")] == ["user", "assistant", "user"]
    assert page.js("asked[0].content[0].image_url.url").startswith("data:image/png;base64,")
    page.click("#over")
    reload(page, server.url)
    assert words(page) == []
    page.js("sessionStorage.setItem('llava-ref conversation', '[{\"text\": 7}]')")
    reload(page, server.url)
    assert words(page) == [] and page.shows("#start")


def test_pictures_that_the_browser_has_no_room_for(page, server):
    page.js(SMALL)
    page.drop(("star.png", picture("caption.png")))
    answers(page, "A star.")
    ask(page, "What is this?")
    assert read(page, "#unkept").startswith("The pictures of this conversation are too large for this browser to keep")
    reload(page, server.url)
    assert "star.png: not kept by this browser" in read(page, ".user .unknown")
    answers(page, "Red.")
    ask(page, "Which colour?")
    assert page.js("asked[0].content.length") == 1


def test_settings_are_sent_and_kept(page, server):
    page.click("#options")
    assert page.js("document.activeElement.id") == "system"
    page("Input.insertText", text="Speak French.")
    page.type("#temperature", "0.5")
    page.type("#max_tokens", "7")
    page.click("#settings .row button")
    reload(page, server.url)
    assert read(page, "#options") == "Settings (3)"
    page.js(LISTEN)
    ask(page, "Hello")
    body = page.js("body")
    system, asked = body["messages"]
    assert system == {"role": "system", "content": "Speak French."} and asked["content"][0]["text"] == "Hello"
    assert (body["temperature"], body["max_tokens"], body["return_progress"]) == (0.5, 7, True) and read(
        page, "#error"
    ) == ""
    page.click("#options")
    page.js("document.getElementById('temperature').value = 9")
    page.click("#settings .row button")
    assert page.js("document.getElementById('panel').open"), "what cannot be sent is said here"
    page.click("#defaults")
    page.press("Escape")
    ask(page, "Hello")
    assert len(page.js("body.messages")) == 3 and "temperature" not in page.js("body")


def test_a_question_is_edited_and_asked_again(page):
    for question, answer in (("One?", "1"), ("Two?", "2"), ("Three?", "3")):
        answers(page, answer)
        ask(page, question)
    page.js("document.querySelectorAll('.user .actions button')[1].id = 'edit'")
    page.click("#edit")
    assert page.js("document.getElementById('question').value") == "Two?" and page.shows("#editing")
    assert page.js("document.querySelectorAll('.replaced').length") == 4
    page.press("Escape")
    assert page.js("document.querySelectorAll('.replaced').length") == 0 and len(words(page)) == 6
    page.click("#edit")
    answers(page, ending="error", error={"message": "odd", "code": "odd"})
    ask(page, " Or four?")
    assert words(page)[2:4] == ["Two?", "2"] and len(words(page)) == 6, "nothing is lost by an error"
    assert page.js("document.getElementById('question').value") == "Two? Or four?" and page.shows("#editing")
    answers(page, "4")
    page.press("Enter")
    page.until("document.querySelectorAll('.answer').length === 2 && document.getElementById('stop').hidden")
    assert words(page) == ["One?", "1", "Two? Or four?", "4"]
    assert [m["role"] for m in page.js("asked")] == ["user", "assistant", "user"]
    answers(page, "Five")
    page.js("[...document.querySelectorAll('.answer .actions button')].at(-1).id = 'again'")
    page("Input.insertText", text="A draft")
    page.click("#again")
    page.until(
        "document.querySelectorAll('.answer p')[1]?.textContent === 'Five' && document.getElementById('stop').hidden"
    )
    assert words(page)[2:] == ["Two? Or four?", "Five"]
    assert page.js("document.getElementById('question').value") == "A draft"


def test_an_answer_is_copied(page):
    answers(page, "A small ", "red star.")
    ask(page, "What is this?")
    page.js(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async text => { window.copied = text; }}})"
    )
    page.click(".answer .actions button")
    page.until("document.querySelector('.answer .actions button').textContent === 'Copied'")
    assert page.js("copied") == "A small red star."


STATES = [
    ({"stage": "queue", "ahead": 2}, "waiting for 2 requests before this one"),
    (
        {"stage": "picture", "picture": 2, "pictures": 3, "block": 5, "blocks": 24},
        "reading picture 2 of 3: block 5 of 24",
    ),
    ({"stage": "prompt", "processed": 580}, "reading the prompt: 580 of 1277 positions (64 kept from before)"),
]


@pytest.mark.parametrize("state, said", STATES)
def test_the_page_says_how_far_an_answer_is(page, state, said):
    answers(
        page, "", ending="go on", prompt_progress={"total": 1277, "cache": 64, "processed": 64, "time_ms": 5} | state
    )
    send(page, "What is this?")
    page.until(f"document.querySelector('.running .note').textContent.startsWith({json.dumps(said)})")
    bar = page.js("(b => [b.hidden, b.value, b.max])(document.querySelector('.running progress'))")
    assert bar[0] if state["stage"] == "queue" else bar[1:] in ([5, 24], [580, 1277])
    page.press("Escape")
    page.until("document.getElementById('stop').hidden")


def test_tokens_are_counted_while_they_come(page):
    answers(page, "a", "b", "c", ending="go on")
    send(page, "What is this?")
    page.until("document.querySelector('.running .note').textContent.startsWith('about 3 tokens')")
    page.press("Escape")
    page.until("document.getElementById('stop').hidden")


def test_which_of_several_pictures_a_map_is_of(page):
    page.drop(("count.png", picture("count.png")), ("caption.png", picture("caption.png")))
    answers(page, "a red star")
    ask(page, "Describe the pictures.")
    page.click(".word")
    page.until("!document.getElementById('look').hidden")
    assert read(page, "#sizes").startswith("“caption.png”, picture 2 of 2: 240 × 240 resized to 64 × 64")
