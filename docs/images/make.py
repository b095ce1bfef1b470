"""Makes what the README and docs/server.md show: pictures of the page, one of a conformance report, and two commands'
output as text.

`make pictures` runs it: the extra `conformance` and Chromium (Debian's package `chromium`) must be there.
"""

import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from page_states import LIMITS, PHONE, show  # noqa: E402

from tests.api import running  # noqa: E402
from tests.api.browser import BrowserPage  # noqa: E402
from tests.support.image_files import widened  # noqa: E402

FOLDER, README = Path(__file__).parent, ROOT / "README.md"
PICTURES = ROOT / "llava_ref" / "assets" / "pictures"
COMMAND = [sys.executable, "-m", "llava_ref"]
SCALE, LARGEST = 2, 150_000  # pixels of each CSS pixel; bytes of a picture


def main() -> None:
    """Make all of it. The demo comes first: where it fails nothing else is worth a look."""
    write("demo", demo())
    sample = next(one for one in json.loads((PICTURES / "pictures.json").read_text()) if one["file"] == "caption.png")
    with tempfile.TemporaryDirectory() as folder, BrowserPage(Path(folder) / "profile") as page:
        with serving() as url:
            ask(page, url, PICTURES / sample["file"], sample["question"])
            shoot(page, "page.webp", 1120, 780)
        states(page)
        picture, report = Path(folder) / "wide.png", Path(folder) / "report.html"
        widened(PICTURES / sample["file"]).save(picture)
        write("conform", conform(picture, sample["question"], report))
        page.open(report.as_uri())
        shoot(page, "report.webp", 900, 580)


def demo() -> str:
    """Return the first two pictures of the demo, the last, and the sum."""
    done = subprocess.run([*COMMAND, "demo"], stdout=subprocess.PIPE, text=True, check=True)
    *pictures, total = done.stdout.strip().split("\n\n")
    return "\n\n".join([*pictures[:2], "...", pictures[-1], total])


def write(name: str, output: str) -> None:
    """Put `output` into the README's block behind the mark of that name."""
    readme = README.read_text()
    block = re.compile(rf"(<!-- {name}: written by make pictures -->\n```text\n).*?(\n```\n)", re.DOTALL)
    assert block.search(readme), f"the README has no place for {name}"
    README.write_text(block.sub(lambda found: found[1] + output + found[2], readme))


@contextmanager
def serving() -> Iterator[str]:
    """Serve the embedded pair, and give its address."""
    with subprocess.Popen([*COMMAND, "serve", "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            yield server.stderr.readline().strip().rpartition(" at ")[2]
        finally:
            server.terminate()


def ask(page: BrowserPage, url: str, picture: Path, question: str) -> None:
    """Ask about `picture` on the page, and click on "triangle" in the answer, or else on its last word."""
    page.open(url)
    page.until("document.querySelectorAll('#samples img').length")
    page.drop((picture.name, picture.read_bytes()))
    page.type("#question", question)
    page.press("Enter")
    page.until("document.querySelectorAll('.word').length && !document.getElementById('look').hidden")
    words = page.js("[...document.querySelectorAll('.word')].map(word => word.textContent)")
    word = next((i for i, text in enumerate(words) if text == "triangle"), len(words) - 1)
    page.js(f"document.querySelectorAll('.word')[{word}].id = 'chosen'")
    page.click("#chosen")
    page.until("document.getElementById('lookname').textContent.startsWith('Where it looked')")
    page.js("document.activeElement.blur()")


def conform(picture: Path, question: str, report: Path) -> str:
    """Compare with llama.cpp under profile `llava`, which differs (exit code 1), and return the findings."""
    arguments = ["--image", str(picture), "-p", question, "--against", "llama.cpp", "--report", str(report)]
    done = subprocess.run([*COMMAND, "conform", *arguments], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 1, "the report is to show a difference"
    findings = takewhile(lambda line: line.startswith("  "), done.stdout.splitlines()[1:])
    return "\n".join(line.removeprefix("  ") for line in findings)


def states(page: BrowserPage) -> None:
    """Save what docs/server.md shows: a slow answer, a picture that is too large, and pictures that can be changed."""
    width, height = PHONE
    sheet = Image.new("RGB", (3 * width + 40, height), "white")
    with running.serving(limits=LIMITS) as server:
        for i, name in enumerate(("slow-phone", "refused-phone", "changed-phone")):
            sheet.paste(show(page, server.url, name), (i * (width + 20), 0))
    save(sheet, "page-states.webp")


def shoot(page: BrowserPage, name: str, width: int, height: int) -> None:
    """Save a window of this size."""
    page("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=SCALE, mobile=False)
    page.frame()
    save(Image.open(io.BytesIO(page.png())).convert("RGB"), name)


def save(shot: Image.Image, name: str) -> None:
    """Save a picture as it is, small."""
    path = FOLDER / name
    shot.save(path, lossless=True, method=6)
    print(f"{path.relative_to(ROOT)}: {shot.width} x {shot.height}, {path.stat().st_size:,} bytes")
    assert path.stat().st_size < LARGEST


if __name__ == "__main__":
    main()
