"""Makes the pictures of docs/gallery.md: runs each command on the sample pictures, and photographs what it draws.

`make pictures` runs it after make.py: Chromium and the extra `conformance` must be there.
"""

import io
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.api.browser import BrowserPage  # noqa: E402

FOLDER, SAMPLES = Path(__file__).parent, ROOT / "llava_ref" / "assets" / "pictures"
LARGEST = 90_000  # bytes of a picture
DESK, PHONE = (1100, 760), (390, 800)


@dataclass(frozen=True)
class Shot:
    """Says what is photographed: the page that the command writes, its picture, or what it prints on a terminal."""

    command: str
    do: str = ""  # a script for the page
    at: str = "body"  # the element that is scrolled to the top
    size: tuple[int, int] = DESK
    dark: bool = False
    lines: int | None = None  # of what a terminal shows; None: all


ATTEND = 'llava-ref attend --image caption.png -p "Describe the picture." -o attend.html'
LENS = 'llava-ref lens --image caption.png -p "Describe the picture." -o lens.html'
CONFORM = (
    'llava-ref conform --image word.png -p "What is the word?" --against this:class_token=last --report conform.html'
)
TRIANGLE = "[...document.querySelectorAll('.tokens button')].find(one => one.textContent.includes('triangle')).click()"
SHOTS = {
    "attend": Shot(ATTEND, TRIANGLE, size=(1100, 780)),
    "heads": Shot(ATTEND, TRIANGLE, at="section ~ h2, .maps + h2", size=(1100, 330), dark=True),
    "head": Shot('llava-ref attend --image caption.png -p "Describe the picture." --layer 2 --head 4 -o head.png'),
    "attend-phone": Shot(ATTEND, TRIANGLE, at=".tokens", size=PHONE),
    "lens": Shot(LENS, size=(1100, 520)),
    "lens-picture": Shot(LENS, at=".lens ~ h2", size=(1100, 780), dark=True),
    "patch": Shot(
        'llava-ref patch --image digit.png --from-image where.png -p "What is the digit?" -o patch.html',
        at=".runs + h2",
        size=(1100, 640),
    ),
    "quality": Shot("llava-ref quality --report quality.html", at="h1", size=(1100, 1000)),
    "conform": Shot(CONFORM, size=(1100, 620)),
    "conform-stages": Shot(CONFORM, at=".key", size=(1100, 400), dark=True),
    "conform-terminal": Shot(CONFORM),
    "demo-terminal": Shot("llava-ref demo", lines=23),
    "explain-terminal": Shot('llava-ref explain --image shape.png -p "What is the purple shape?"', lines=44),
}
COLOURS = {31: "#ff7b70", 32: "#5ccf85"}
TERMINAL = """<meta charset="utf-8"><style>body {{ margin: 0; background: #14171c; color: #e4e8ee }}
pre {{ margin: 0; padding: 14px; font: 13px "DejaVu Sans Mono", monospace; white-space: pre-wrap }}
pre {{ width: max-content; max-width: 112ch }}</style>
<pre><b>$ {}</b>\n{}</pre>"""


def main() -> None:
    total = 0
    with tempfile.TemporaryDirectory() as folder, BrowserPage(Path(folder) / "profile") as page:
        for picture in SAMPLES.glob("*.png"):
            shutil.copy(picture, folder)
        printed: dict[str, str] = {}
        for name, shot in SHOTS.items():
            if shot.command not in printed:
                printed[shot.command] = run(shot.command, Path(folder))
            path = FOLDER / f"{name}.webp"
            photograph(page, name, shot, printed[shot.command], Path(folder)).save(path, lossless=True, method=6)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
            assert path.stat().st_size < LARGEST
            total += path.stat().st_size
    print(f"{len(SHOTS)} pictures, {total:,} bytes")


def run(command: str, folder: Path) -> str:
    """Run a command on a terminal; return what it printed on standard output."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "llava_ref", *shlex.split(command)[1:]]
    settings = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    with subprocess.Popen(words, cwd=folder, stdout=theirs, stderr=subprocess.PIPE, env=settings) as process:
        os.close(theirs)
        said = b"".join(pieces(ours))
        errors = process.communicate()[1]
    assert process.returncode in (0, 1), errors.decode()
    return said.decode().replace("\r\n", "\n")


def pieces(terminal: int) -> Iterator[bytes]:
    """Yield what a terminal gets, until the other side is closed."""
    try:
        while data := os.read(terminal, 65536):
            yield data
    except OSError:  # how Linux says so
        pass
    os.close(terminal)


def photograph(page: BrowserPage, name: str, shot: Shot, printed: str, folder: Path) -> Image.Image:
    """Return a picture of what a command drew."""
    drawn = folder / shlex.split(shot.command)[-1]
    if drawn.suffix == ".png" and not name.endswith("-terminal"):
        return Image.open(drawn).convert("RGB")
    if name.endswith("-terminal"):
        drawn = folder / "terminal.html"
        shown = "\n".join(printed.rstrip().split("\n")[: shot.lines])
        drawn.write_text(TERMINAL.format(escape(shot.command), coloured(shown)))
    page.open(drawn.as_uri(), *shot.size, dark=shot.dark)
    page.js(shot.do)
    if name.endswith("-terminal"):
        width, height = page.js(
            "(box => [box.width, box.height])(document.querySelector('pre').getBoundingClientRect())"
        )
        page.size(round(width), round(height), dark=True)
    page.frame()
    page.js(f"document.querySelector({shot.at!r}).scrollIntoView()")
    page.frame()
    assert not page.complaints, page.complaints
    return Image.open(io.BytesIO(page.png())).convert("RGB")


def coloured(text: str) -> str:
    """Return a terminal's text as HTML, with its colours."""
    parts = re.split(r"\x1b\[([\d;]*)m", text)
    html, style = [escape(parts[0])], ""
    for codes, words in zip(parts[1::2], parts[2::2], strict=True):
        numbers = [int(code or 0) for code in codes.split(";")]
        if numbers == [0]:
            style = ""
        elif numbers[0] in (38, 48):
            style += f"{'color' if numbers[0] == 38 else 'background'}: rgb({', '.join(map(str, numbers[2:]))}); "
        else:
            style = f"color: {COLOURS[numbers[0]]}"
        html.append(f'<span style="{style}">{escape(words)}</span>' if style else escape(words))
    return "".join(html)


if __name__ == "__main__":
    main()
