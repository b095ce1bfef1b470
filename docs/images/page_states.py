"""Takes pictures of the page's states, for `make.py` and to look at: `python docs/images/page_states.py FOLDER`.

The embedded model answers, except where an answer has to be slow, long or wrong; there the page is given one.
"""

import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from llava_ref.api.limits import Limits  # noqa: E402
from tests.api.browser import DROP, BrowserPage  # noqa: E402
from tests.api.conversing import SAMPLES, answers, ask, data, noise, opened, send  # noqa: E402
from tests.api.running import picture, serving  # noqa: E402

LIMITS = Limits(max_pixels=400_000)
STORY = "There was a small red star that lived beside a large black triangle, and neither had ever seen a digit. "
PROMPT = {"stage": "prompt", "layer": 12, "layers": 32, "processed": 812, "total": 1277, "cache": 0, "time_ms": 9000}


def drop(page: BrowserPage, *names: str) -> None:
    page.drop(*((name, picture(name)) for name in names))


def conversation(page: BrowserPage) -> None:
    """Several turns, with the map of a word of the last."""
    for sample in SAMPLES[:3]:
        drop(page, sample["file"])
        ask(page, sample["question"])
    drop(page, "count.png", "caption.png")
    answers(page, "a small red star, a large black triangle, a large purple star and the green digit 4")
    ask(page, "Describe the pictures.")
    page.js("[...document.querySelectorAll('.word')].at(-5).id = 'chosen'")
    page.js("window.fetch = window.real")
    page.click("#chosen")
    page.until("document.getElementById('lookname').textContent.startsWith('Where it looked')")
    page.js("document.activeElement.blur()")


def slow(page: BrowserPage) -> None:
    """An answer that has not begun."""
    drop(page, "caption.png")
    answers(page, "", ending="go on", prompt_progress=PROMPT)
    send(page, "Describe the picture.")
    page.until("document.querySelector('.running progress').value > 0")


def refused(page: BrowserPage) -> None:
    """A picture that is too large, and the offer to send it smaller."""
    drop(page, "caption.png")
    ask(page, "Describe the picture.")
    page.js(DROP % json.dumps([("holiday.png", data(noise(1200, 800)))]))
    page.until("document.querySelector('#offers button')")
    page.type("#question", "And what is this?")


def changed(page: BrowserPage) -> None:
    """A picture on its side and a transparent one, each with what can be done about it."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(picture("word.png"))).convert("RGB").resize((240, 160)).save(out, "JPEG", exif=exif)
    clear = Image.open(io.BytesIO(picture("shape.png"))).convert("RGBA")
    clear.putalpha(clear.convert("L").point(lambda value: 255 if value < 200 else 0))
    logo = io.BytesIO()
    clear.save(logo, "PNG")
    page.drop(("turned.jpg", out.getvalue()), ("logo.png", logo.getvalue()))
    page.type("#question", "What do they show?")


def story(page: BrowserPage) -> None:
    """A long conversation, of which a question is edited."""
    for n in range(3):
        answers(page, STORY * (n + 2))
        ask(page, "Tell me a story." if n == 0 else "And then?")
    page.js("[...document.querySelectorAll('.user .actions button')].at(-1).id = 'edit'")
    page.click("#edit")


def key(page: BrowserPage) -> None:
    """The key was wrong."""
    page.js("""window.fetch = async () => new Response(JSON.stringify({error: {
      message: "the API key is missing or wrong", code: "invalid_api_key"}}), {status: 401})""")
    ask(page, "Anybody there?")


def options(page: BrowserPage) -> None:
    page.click("#options")


WIDE, PHONE = (1120, 780), (390, 780)
STATES: dict[str, tuple[Callable[[BrowserPage], Any], tuple[int, int], bool]] = {
    "begin": (lambda page: None, WIDE, False),
    "conversation": (conversation, WIDE, False),
    "conversation-dark": (conversation, WIDE, True),
    "conversation-phone": (conversation, PHONE, False),
    "slow": (slow, WIDE, False),
    "slow-phone": (slow, PHONE, True),
    "refused": (refused, WIDE, False),
    "refused-phone": (refused, PHONE, True),
    "changed": (changed, WIDE, False),
    "changed-phone": (changed, PHONE, False),
    "story": (story, WIDE, True),
    "story-phone": (story, PHONE, False),
    "key": (key, WIDE, False),
    "options": (options, WIDE, False),
    "options-phone": (options, PHONE, True),
}


def show(page: BrowserPage, url: str, name: str, scale: int = 1) -> Image.Image:
    """Bring a freshly opened page into a state, and take a picture of the window."""
    act, (width, height), dark = STATES[name]
    opened(page, url, {"width": width, "height": height, "dark": dark})
    page("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)
    act(page)
    page.frame()
    return Image.open(io.BytesIO(page.png())).convert("RGB")


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, BrowserPage(Path(profile)) as page, serving(limits=LIMITS) as server:
        for name in STATES:
            show(page, server.url, name).save(folder / f"{name}.png")
            print(folder / f"{name}.png", *page.complaints)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
