"""Tests what the page does with a picture before it is sent: what it says of it, and what it changes when asked to."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref import images
from llava_ref.api.limits import Limits

from .browser import CHROMIUM, DROP
from .conversing import answers, ask, fits, noise, opened, read
from .running import picture, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}


def encoded(image, kind, orientation=1, **more):
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(out, kind, **({"exif": exif} if orientation > 1 else {}), **more)
    return out.getvalue()


def files():
    """Yield a name, a file of each kind, its orientation, and whether it may be transparent."""
    plain, clear = Image.new("RGB", (37, 21), "teal"), Image.new("RGBA", (37, 21), (250, 0, 0, 90))
    for name, kind in FORMATS.items():
        yield f"plain.{name}", encoded(plain, kind), 1, name == "gif"
        if name in ("png", "jpg", "webp"):
            yield f"turned.{name}", encoded(plain, kind, 6), 6, False
    yield "lossless.webp", encoded(plain, "WEBP", lossless=True), 1, False
    yield "clear.webp", encoded(clear, "WEBP"), 1, True
    yield "clear.png", encoded(clear, "PNG"), 1, True
    yield "palette.png", encoded(plain.convert("P"), "PNG", transparency=0), 1, True
    yield "progressive.jpg", encoded(plain, "JPEG", progressive=True), 1, False


def test_the_page_reads_headers_as_the_server_does(page):
    for name, data, orientation, alpha in files():
        found = page.js(f"import('./header.js').then(m => m.readHeader(new Blob([{_bytes(data)}])))")
        assert (found["width"], found["height"]) == images.measure(data) == (37, 21), name
        assert (found["orientation"], found["alpha"]) == (orientation, alpha), name
        for end in (0, 3, 11, 20, len(data) // 2):
            assert page.js(
                f"import('./header.js').then(m => m.readHeader(new Blob([{_bytes(data[:end])}]))).then(() => 1)"
            )


def _bytes(data):
    return f"Uint8Array.from(atob('{base64.b64encode(data).decode()}'), c => c.charCodeAt(0))"


def sent(page, index=0):
    """Return the picture of the last question that was sent, as the browser sent it."""
    url = page.js(f"asked.at(-1).content[{index}].image_url.url")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.mark.parametrize("limits", [{"max_pixels": 20_000}, {"max_body": 30_000}], ids=["pixels", "bytes"])
def test_a_picture_over_a_limit_is_sent_scaled_down_if_the_user_says_so(browser, limits):
    with serving(limits=Limits(**limits)) as server:
        page = opened(browser, server.url)
        page.js(DROP % json.dumps([("noise.png", base64.b64encode(noise(300, 200)).decode())]))
        page.until("document.querySelector('#offers button')")
        assert read(page, "#error p:first-child") == "“noise.png” is too large." and fits(page)
        assert page.js("document.getElementById('attached').childElementCount") == 0, "nothing is changed by itself"
        offered = read(page, "#offers button:first-child")
        page.click("#offers button")
        page.until("document.querySelector('#attached figcaption')")
        note = read(page, "#attached figcaption")
        answers(page, "noise")
        ask(page, "What is this?")
        image = sent(page)
        assert offered == f"Send it scaled to {image.width} × {image.height}"
        assert abs(image.width - image.height * 1.5) < 1.5 and image.width > 80
        assert note.startswith(f"scaled from 300 × 200 to {image.width} × {image.height} by this page")
        assert read(page, ".user figcaption") == note and read(page, "#error") == ""
        page.js("window.fetch = window.real")
        ask(page, "And now?")
        assert read(page, "#error") == "" and page.js("document.querySelectorAll('.answer').length") == 2


def test_a_picture_on_its_side_can_be_turned(page):
    source = Image.new("RGB", (90, 60), "teal")
    source.paste("red", (0, 0, 45, 60))  # upright, the red half is on top
    page.drop(("turned.jpg", encoded(source, "JPEG", 6)))
    assert "the model ignores EXIF orientation 6" in read(page, "#attached figcaption")
    page.until("document.querySelector('#attached img').naturalWidth > 0")
    assert page.js("getComputedStyle(document.querySelector('#attached img')).imageOrientation") == "none"
    page.click("#attached .link")
    page.until("document.querySelector('#attached figcaption').textContent.startsWith('turned upright by this page')")
    assert page.js("document.querySelectorAll('#attached .link').length") == 0
    answers(page, "red over teal")
    ask(page, "What is this?")
    image = sent(page).convert("RGB")
    assert image.size == (60, 90) and image.getexif().get(0x0112, 1) == 1
    assert image.getpixel((30, 10))[0] > 200 > 100 > image.getpixel((30, 80))[0]
    assert read(page, ".user figcaption").startswith("turned upright by this page")


def test_transparency_is_said_and_can_be_laid_over_white(page):
    clear = np.zeros((40, 40, 4), np.uint8)
    clear[10:30, 10:30] = (0, 0, 255, 255)
    page.drop(("logo.png", encoded(Image.fromarray(clear), "PNG")))
    assert "the colours stored under them, often black" in read(page, "#attached figcaption")
    page.click("#attached .link")
    page.until("document.querySelector('#attached figcaption').textContent.startsWith('laid over white')")
    answers(page, "a square")
    ask(page, "What is this?")
    image = np.asarray(sent(page).convert("RGB"))
    assert image.shape == (40, 40, 3) and (image[0, 0] == 255).all() and (image[20, 20] == (0, 0, 255)).all()
    page.drop(
        ("opaque.png", encoded(Image.new("RGBA", (9, 9), (1, 2, 3, 255)), "PNG")), ("star.png", picture("shape.png"))
    )
    assert page.js("document.querySelectorAll('#attached figcaption').length") == 0
