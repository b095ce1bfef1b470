"""The page in a browser: what a person sees of a conversation, whatever happens in it. The model's answers are its own
where only places are looked at, and given by the test where words matter."""

import io
import json

import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.api.limits import Limits

from .browser import CHROMIUM, Page
from .running import PICTURES, Process, picture, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
SAMPLES = json.loads((PICTURES / "pictures.json").read_text())
WIDE, NARROW = {"width": 1200, "height": 800}, {"width": 360, "height": 740, "dark": True}
SIZES = pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow and dark"])

ANSWERS = """(() => {
  const real = window.real ??= window.fetch, wait = () => new Promise(done => setTimeout(done, 10));
  const [pieces, ending, more] = %s, frame = event => new TextEncoder().encode(`data: ${JSON.stringify(event)}\\n\\n`);
  window.fetch = async (path, options) => {
    if (path !== "v1/chat/completions") return real(path, options);
    window.asked = JSON.parse(options.body).messages;
    return new Response(new ReadableStream({ async start(out) {
      options.signal.addEventListener("abort", () => out.error(new DOMException("", "AbortError")));
      for (const content of pieces) {
        out.enqueue(frame({ model: "shapes-text.q8_0", choices: [{ delta: { content } }], ...more }));
        await wait();
      }
      while (ending === "go on" && !window.enough) await wait();
      if (ending === "error") out.enqueue(frame({ error: more.error }));
      if (ending === "done" || window.enough) out.enqueue(new TextEncoder().encode("data: [DONE]\\n\\n"));
      out.close();
    } }));
  };
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser, server):
    """The page as it is when it is opened, wide."""
    return opened(browser, server.url)


def opened(browser, url, size=WIDE):
    browser.open(url, **size)
    browser.until("document.querySelectorAll('#samples img').length === 8")
    return browser


def answers(page, *pieces, ending="done", **more):
    """Let the next answers be these pieces, and end "done", "cut", with an "error", or not at all: "go on"."""
    page.js(ANSWERS % json.dumps([pieces, ending, more]))


def ask(page, text):
    """Type a question and press Enter, and wait until it is answered or refused."""
    send(page, text)
    page.until("document.getElementById('stop').hidden")
    page.frame()


def send(page, text):
    page.js("document.getElementById('question').focus()")
    page("Input.insertText", text=text)
    page.press("Enter")


def read(page, selector):
    """The text of the last such element."""
    return page.js(f"[...document.querySelectorAll({json.dumps(selector)})].at(-1)?.textContent")


def fits(page):
    return page.js("document.documentElement.scrollWidth <= innerWidth")


@SIZES
def test_the_newest_turn_stays_in_sight(browser, server, size):
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
    assert page.js("document.querySelector('#talk').getBoundingClientRect().bottom - innerHeight") <= 1


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
def test_places_are_told_by_name(page, place, name):
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
        page.drop(("noise.png", noise(300, 300)))
        ask(page, "What is this?")
        assert read(page, "#error").startswith("The pictures are too large together: send fewer, or smaller ones.")
        assert page.shows("#error") and page.js("document.querySelectorAll('#attached img').length") == 1


def test_warnings_name_the_file(page):
    source, out = Image.new("RGB", (90, 60), "teal"), io.BytesIO()
    exif = source.getexif()
    exif[0x0112] = 6
    source.save(out, "JPEG", exif=exif)
    page.drop(("turned.jpg", out.getvalue()))
    ask(page, "What is this?")
    note = read(page, ".answer .note")
    assert "“turned.jpg”" in note and "orientation 6" in note and "messages[" not in note


def test_a_conversation_that_is_too_long(page):
    ask(page, "word " * 3000)
    assert read(page, "#error").startswith("This conversation is longer than the model can hold.")
    assert page.shows("#error") and page.shows("#send")


def test_an_empty_answer_is_said(page):
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


def test_stopped_before_it_began(page):
    answers(page, ending="go on")
    send(page, "Describe it.")
    page.until("!document.getElementById('stop').hidden")
    page.click("#stop")
    page.until("document.getElementById('stop').hidden")
    assert page.js("document.getElementById('question').value") == "Describe it." and read(page, "#error") == ""
    assert page.js("document.getElementById('turns').childElementCount") == 0 and page.shows("#start")
    assert page.js("document.activeElement.id") == "question", "the button that had the focus is gone"


def test_a_server_that_goes_in_mid_answer(page):
    answers(page, "A small ", "red ", ending="cut")
    page.drop(("star.png", picture("shape.png")))
    send(page, "Describe it.")
    page("Input.insertText", text="Meanwhile")
    page.until("document.querySelector('#error p')")
    assert read(page, "#error") == "The connection ended before the answer did. Is the server still running?"
    assert "not part of the conversation" in read(page, ".answer .note") and page.shows("#error")
    assert page.js("document.getElementById('question').value") == "Describe it.\nMeanwhile", "nothing typed is lost"
    assert page.js("document.querySelectorAll('#attached img').length") == 1


def test_a_server_that_has_gone(browser):
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


def test_a_key_that_is_wrong(browser):
    with serving(api_key="right") as server:
        browser.open(server.url, **WIDE)
        browser.until("document.activeElement.id === 'secret'")
        assert read(browser, "#error") == ""
        browser("Input.insertText", text="wrong")
        browser.press("Enter")
        browser.until("document.querySelector('#error p')")
        assert read(browser, "#error").startswith("The server refused the API key.") and browser.shows("#secret")


def noise(width, height):
    out = io.BytesIO()
    Image.effect_noise((width, height), 60).save(out, "PNG")
    return out.getvalue()


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


def test_a_telephone_on_its_side(browser, server):
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
    page.press("Tab")
    assert page.js("document.activeElement.id") == "question", "an answer's words are one stop"
    page.click("#over")
    assert page.js("document.activeElement.id") == "question" and page.shows("#start")


def test_where_it_looked_on_a_telephone(browser, server):
    page = opened(browser, server.url, NARROW)
    for name in ("count.png", "caption.png"):
        page.drop((name, picture(name)))
        answers(page, "a red star")
        ask(page, "Describe the picture.")
    assert page.js("document.getElementById('look').hidden"), "nothing comes between before somebody asks"
    page.js("[...document.querySelectorAll('.word')].at(-1).id = 'last'")
    page.click("#last")
    page.until("document.getElementById('lookname').textContent.includes('star')")
    page.frame()
    assert page.shows("#last") and page.shows("#map") and page.shows("#sizes") and fits(page)
    page.click("#last")
    page.until("document.getElementById('look').hidden")
    page.size(360, 560, dark=True)
    page.click("#last")
    page.until("!document.getElementById('look').hidden")
    page.frame()
    assert page.shows("#last") and page.shows("#lookname"), "where not all of it fits, its beginning"


def test_everything_has_a_name(page):
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
