"""The reports in a browser: without complaints, inside their window's width, their maps in the scale's colours."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest

from llava_ref import embedded, scale
from llava_ref.cli import main

from ..api.browser import CHROMIUM, BrowserPage
from .test_footers import PAGES, write_cases

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the pages of all commands."""
    folder, pictures = tmp_path_factory.mktemp("pages"), embedded()[0].parent / "pictures"
    for source, name in (("colour.png", "a b.png"), ("shape.png", "c.png")):
        shutil.copy(pictures / source, folder / name)
    write_cases(folder, folder / "c.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in PAGES.items():
            assert main(shlex.split(words.replace("out.html", f"{name}.html"))) in (0, 1)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with BrowserPage(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.mark.parametrize("name", PAGES)
def test_a_report_fits_its_window_and_follows_the_theme(name, folder, page):
    grounds = []
    for width, dark in ((1200, False), (390, True)):
        page.open((folder / f"{name}.html").as_uri(), width, 800, dark)
        assert page.js("document.documentElement.scrollWidth") == width
        grounds.append(page.js("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"] and not page.complaints


CELLS = """(([selector, n]) => {
  const canvas = document.querySelector(selector), pen = canvas.getContext("2d"), found = [];
  const at = (i, side) => (i + 0.52) / n * side; // not between two pixels of the picture
  for (let y = 0; y < n; y++) for (let x = 0; x < n; x++) {
    found.push([...pen.getImageData(at(x, canvas.width), at(y, canvas.height), 1, 1).data].slice(0, 3));
  }
  return found;
})(%s)"""


PLAIN = """(selector => {
  const image = document.getElementById("picture"), like = document.querySelector(selector);
  const canvas = document.getElementById("plain") ?? document.createElement("canvas"), pen = canvas.getContext("2d");
  canvas.id = "plain"; canvas.width = like.width; canvas.height = like.height;
  pen.imageSmoothingEnabled = like.width < image.naturalWidth;
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  document.body.append(canvas);
})(%s)"""


def drawn(page, selector, parts):
    """Check that a map shows numbers over the end of its scale, over the page's picture in its colours."""
    page.js(PLAIN % json.dumps(selector))
    n = len(parts)
    source, shown = (np.array(page.js(CELLS % json.dumps([one, n]))).reshape(n, n, 3) for one in ("#plain", selector))
    assert np.abs(shown - scale.laid(source, np.asarray(parts)).astype(int)).max() <= 2


def test_attend_draws_what_its_numbers_say(folder, page):
    page.open((folder / "attend.html").as_uri())
    page.until("document.querySelectorAll('.heads canvas').length && document.getElementById('of').textContent")
    data = json.loads(re.search(r"^const data = (.*);$", (folder / "attend.html").read_text(), re.MULTILINE)[1])
    attention, heads, lost = (np.array(data[name]) for name in ("attention", "heads", "lost"))
    assert len(data["pieces"]) == 1
    mean = attention.mean(0)[0]
    drawn(page, "#attention canvas", mean / mean.max())
    drawn(page, "#lost canvas", lost[0] / max(0.1, np.abs(lost[0]).max()))
    end = "document.querySelector('#attention .ends').lastElementChild.textContent"
    assert page.js(end) == f"{float(f'{100 * mean.max():.3g}'):g} % of the attention"
    largest = int(heads.sum((1, 2, 3)).argmax())
    drawn(page, f".heads button:nth-child({largest + 1}) canvas", heads[largest, 0] / heads[:, 0].max())
    page.click(f".heads button:nth-child({largest + 1})")
    drawn(page, "#attention canvas", heads[largest, 0] / heads[largest, 0].max())
    assert page.js("document.getElementById('of').textContent") == f"layer {data['layer']}, head {largest}"
    page.js("(s => { s.value = 0; s.oninput(); })(document.getElementById('layer'))")
    drawn(page, "#attention canvas", attention[0, 0] / max(0.01, attention[0, 0].max()))
    assert not page.complaints


def test_cells_of_the_lens_are_shaded_by_their_probability(folder, page):
    page.open((folder / "lens.html").as_uri())
    data = json.loads(re.search(r"^const data = (.*);$", (folder / "lens.html").read_text(), re.MULTILINE)[1])
    cells = page.js("""[...document.querySelectorAll("td")].map(cell =>
      [cell.dataset.l, cell.dataset.at, getComputedStyle(cell).backgroundColor])""")
    assert len(cells) > 50
    for layer, at, colour in cells:
        opacity = float(re.fullmatch(r"color\(srgb .* / ([\d.e-]+)\)|color\(srgb [^/]*\)", colour)[1] or 1)
        wanted = scale.STRONGEST * data["probabilities"][int(layer)][int(at)][0]
        assert abs(opacity - wanted) < 0.01, colour
