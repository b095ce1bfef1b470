"""Tests what a user sees of a conversation in a browser.

Where only the layout is checked, the model answers; where the words matter, the test supplies the answers."""

import io

import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from .browser import CHROMIUM
from .conversing import NARROW, SAMPLES, SIZES, answers, ask, fits, noise, opened, read, send
from .running import picture

BELOW = "document.querySelector('#talk').getBoundingClientRect().bottom - innerHeight"  # pixels under the window

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@SIZES
def test_the_newest_turn_stays_in_view(browser, server, size):
    page = opened(browser, server.url, size)
    for n in range(20):
        sample = SAMPLES[n % len(SAMPLES)]
        if n < 8:
            page.drop((sample["file"], picture(sample["file"])))
        ask(page, sample["question"])
        assert page.js("document.querySelectorAll('.answer').length") == n + 1
        assert page.shows(".answer p") and page.shows(".answer .note") and page.shows("#ask") and fits(page)
        assert page.js("document.getElementById('newest').hidden")


@SIZES
def test_a_reader_who_scrolled_up_stays_there(browser, server, size):
    page = opened(browser, server.url, size)
    answers(page, "Once upon a time there was a star. " * 60)
    ask(page, "Tell me a story.")
    answers(page, *["And then there was another star. "] * 40, ending="go on")
    send(page, "Another.")
    page.until("document.querySelectorAll('.answer').length === 2")
    page.wheel(-400)
    page.until("!document.getElementById('newest').hidden")
    page.until("document.querySelector('.running').textContent.length > 1200")
    place = page.js("scrollY")
    page.js("document.querySelector('.running p').append('More. '.repeat(200))")
    page.frame()
    assert page.js("scrollY") == place and page.shows("#newest") and not page.shows(".answer .note")
    page.click("#newest")
    page.js("window.enough = true")
    page.until("document.getElementById('stop').hidden && document.getElementById('newest').hidden")
    assert page.js(BELOW) <= 1


@SIZES
def test_a_reader_who_scrolls_up_slowly_is_not_pulled_back(browser, server, size):
    page = opened(browser, server.url, size)
    answers(page, "Once upon a time there was a star. " * 60)
    ask(page, "Tell me a story.")
    end = page.js("scrollY")
    for n in range(1, 4):
        page.wheel(-8)
        page.until(f"scrollY === {end - 8 * n}")
    page.js("document.querySelector('.answer p').append('More. '.repeat(200))")
    page.frame()
    assert page.js("scrollY") == end - 24
    page.wheel(100_000)
    page.until("document.getElementById('newest').hidden")
    page.js("document.querySelector('.answer p').append('More. '.repeat(200))")
    page.frame()
    assert page.js(BELOW) <= 1, "at the end again, and followed"


def test_warnings_name_the_file(page):
    source, out = Image.new("RGB", (90, 60), "teal"), io.BytesIO()
    exif = source.getexif()
    exif[0x0112] = 6
    source.save(out, "JPEG", exif=exif)
    page.drop(("turned.jpg", out.getvalue()))
    ask(page, "What is this?")
    note = read(page, ".answer .note")
    assert "“turned.jpg”" in note and "orientation 6" in note and "messages[" not in note


def test_an_empty_answer_is_announced(page):
    answers(page)
    ask(page, "Are you there?")
    assert read(page, ".answer p") == "(empty answer)" and read(page, "#said") == "The answer is empty."
    answers(page, "Yes.")
    ask(page, "And now?")
    assert page.js("asked").__len__() == 3 and page.js("asked")[1] == {"role": "assistant", "content": ""}


def test_a_stopped_answer_stays(page):
    answers(page, "A small ", "red ", ending="go on")
    send(page, "Describe it.")
    page.until("document.querySelector('.running').textContent.includes('red')")
    page("Input.insertText", text="The next question")
    page.press("Escape")
    page.until("document.getElementById('stop').hidden")
    assert read(page, ".answer p") == "A small red " and read(page, ".answer .note") == "stopped"
    assert page.js("[document.activeElement.id, document.activeElement.value]") == ["question", "The next question"]
    assert read(page, "#error") == ""


def test_an_answer_stopped_before_its_first_token(page):
    answers(page, ending="go on")
    send(page, "Describe it.")
    page.until("!document.getElementById('stop').hidden")
    page.click("#stop")
    page.until("document.getElementById('stop').hidden")
    assert page.js("document.getElementById('question').value") == "Describe it." and read(page, "#error") == ""
    assert page.js("document.getElementById('turns').childElementCount") == 0 and page.shows("#start")
    assert page.js("document.activeElement.id") == "question", "the button that had the focus is gone"


@SIZES
def test_long_words_and_large_pictures_stay_inside(browser, server, size):
    page = opened(browser, server.url, size)
    page.drop(*((f"a picture with a long name {n}.png", picture(SAMPLES[n]["file"])) for n in range(6)))
    page.drop(("noise.png", noise(1800, 1200)), ("line.png", noise(2000, 30)), ("x" * 150 + ".txt", b"words"))
    assert fits(page) and page.shows("#ask")
    answers(page, "x" * 300, " and ", "Donaudampfschiffahrt" * 12, " https://example.org/" + "a/" * 80, " end")
    ask(page, "W" * 200)
    assert fits(page) and page.shows("#ask") and page.shows(".answer .word:last-child")
    boxes = "[...document.querySelectorAll('.word, .user, .user img')].map(e => e.getBoundingClientRect())"
    assert page.js(f"{boxes}.every(box => box.left >= 0 && box.right <= innerWidth)")
    answers(page, ending="error", error={"message": "y" * 900, "code": "odd"})
    ask(page, "And a long error?")
    assert fits(page) and page.shows("#error") and page.shows("#send")


def test_a_phone_in_landscape(browser, server):
    page = opened(browser, server.url, {"width": 740, "height": 360})
    answers(page, "A star. " * 100)
    ask(page, "Tell me a story.")
    assert page.shows("#ask") and fits(page)
    page.wheel(-300)
    page.until("!document.getElementById('newest').hidden")
    assert page.shows("#newest") and not page.shows("#ask"), "the composer leaves the room to the answer"


def test_by_keyboard_alone(page):
    page.drop(("caption.png", picture("caption.png")))
    answers(page, "a red star")
    ask(page, "Describe the picture.")
    assert page.js("document.activeElement.id") == "question", "ready for the next question"
    page.js("document.querySelector('.word').focus()")
    for key, word in (("ArrowRight", "red"), ("End", "star"), ("ArrowRight", "star"), ("ArrowLeft", "red")):
        page.press(key)
        assert page.js("document.activeElement.textContent") == word
    page.press("Enter")
    page.until("document.getElementById('lookname').textContent.includes('red')")
    assert page.js("document.activeElement.ariaPressed") == "true"
    for name in ("Copy", "Ask again", ""):
        page.press("Tab")
        assert page.js("document.activeElement.textContent") == name, "an answer's words are one stop"
    assert page.js("document.activeElement.id") == "question"
    page.click("#over")
    assert page.js("document.activeElement.id") == "question" and page.shows("#start")


def test_the_attention_map_on_a_phone(browser, server):
    page = opened(browser, server.url, NARROW)
    for name in ("count.png", "caption.png"):
        page.drop((name, picture(name)))
        answers(page, "a red star")
        ask(page, "Describe the picture.")
    assert page.js("document.getElementById('look').hidden"), "nothing comes between before somebody asks"
    page.js("[...document.querySelectorAll('.word')].at(-1).id = 'last'")
    page.click("#last")
    page.until("document.getElementById('lookname').textContent.includes('star')")
    assert page.shows("#last") and page.shows("#map") and page.shows("#sizes") and fits(page)
    page.click("#last")
    page.until("document.getElementById('look').hidden")
    page.size(360, 560, dark=True)
    page.click("#last")
    page.until("!document.getElementById('look').hidden")
    assert page.shows("#last") and page.shows("#lookname"), "where not all of it fits, its beginning"


@SIZES
def test_the_map_of_an_earlier_picture(browser, server, size):
    page = opened(browser, server.url, size)
    for name in ("count.png", "caption.png"):
        page.drop((name, picture(name)))
        answers(page, "a red star")
        ask(page, "Describe the picture.")
    page.js("[...document.querySelectorAll('.word')].at(-1).id = 'last'")
    page.click("#last")
    page.until("document.getElementById('sizes').textContent.includes('“caption.png”, picture 2 of 2')")
    pixels = "document.getElementById('map').toDataURL()"
    last = page.js(pixels)
    page.click("#pictures button")
    page.until("document.getElementById('sizes').textContent.includes('“count.png”, picture 1 of 2')")
    assert page.js(pixels) != last and "“star”" in read(page, "#lookname") and fits(page)
    pressed = "[...document.querySelectorAll('#pictures button')].map(one => one.ariaPressed)"
    assert page.js(pressed) == ["true", "false"]
    assert page.js("document.activeElement.ariaLabel") == "Picture 1 of 2: count.png"
    page.click("#pictures button:last-child")
    page.until("document.getElementById('sizes').textContent.includes('picture 2 of 2')")
    assert page.js(pixels) == last
    page.js("document.querySelector('.word').id = 'first'")
    page.click("#first")
    page.until("document.getElementById('sizes').textContent.startsWith('240')")
    assert page.js("document.getElementById('pictures').childElementCount") == 0, "that answer saw one picture"


def test_every_control_has_an_accessible_name(page):
    page("Accessibility.enable")
    page.drop(("caption.png", picture("caption.png")))
    answers(page, "a red star")
    ask(page, "Describe the picture.")
    assert read(page, "#said") == "a red star", "read out once, when it is whole"
    page.click(".word")
    page.drop(("caption.png", picture("caption.png")), ("notes.txt", b"words"))
    answers(page, ending="error", error={"message": "odd", "code": "odd"})
    ask(page, "And now?")
    page.until("!document.getElementById('look').hidden")
    nodes = [node for node in page("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
    named = [(node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in nodes]
    roles = {"button", "textbox", "image", "complementary", "region", "heading"}
    assert not [(role, name) for role, name in named if role in roles and not name]
    assert {("image", "caption.png"), ("button", "Remove caption.png"), ("textbox", "Question")} <= set(named)
    assert {"alert", "status", "main", "banner"} <= {role for role, _ in named}
