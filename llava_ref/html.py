"""Make self-contained HTML pages: the functions that `study`, `quality` and `conform` share."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from . import scale
from .errors import visible
from .gguf import hashes
from .versions import versions

FOOTER = """\
<footer>
<p>Made by this command:</p>
<pre><code>{{ command }}</code></pre>
<p>{{ runs }}. {{ versions|join(', ') }}.</p>
<ul>
{% for name, size, digest in files %}
<li>{{ name }}, {{ size }} bytes, SHA-256 <code title="{{ digest }}">{{ digest[:12] }}</code></li>
{% endfor %}
</ul>
</footer>
"""


def environment(**filters: Callable[..., Any]) -> Environment:
    """Return a jinja2 environment for our own templates. It escapes all text from files and models.

    Templates of `llava_ref/assets` are found by name; a page extends report.html.jinja, which has the shared style."""
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
        loader=FunctionLoader(asset),
    )
    made.filters.update(filters)
    made.globals["scale"] = Markup(scale.style())
    return made


def asset(name: str) -> str:
    """Return the text of a file of `llava_ref/assets`."""
    return files("llava_ref").joinpath("assets", name).read_text("utf-8")


def data_uri(rgb: np.ndarray) -> str:
    """Return a data URI with a picture as PNG, (h, w, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


TABLE = """\
<style>.llava-ref td, .llava-ref th {text-align: left !important; white-space: pre-wrap}</style>
<div class="llava-ref" style="max-height: 28em; overflow: auto"><table>
{% if head %}<thead><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
{% endif %}
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
"""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table for a notebook: text is escaped, and a long table scrolls."""
    return environment().from_string(TABLE).render(head=head, rows=[[str(cell) for cell in row] for row in rows])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of texts as lines whose columns stand below each other, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _visible(value: Any) -> Any:
    """Show control characters of a text, such as those that reverse it, as escapes. Markup is our own, and kept."""
    return visible(value) if type(value) is str else value


def signed(page: str, command: str, paths: Iterable[Path | None], runs: str) -> str:
    """Return a page with a footer: the command that makes it, what ran, versions, and the files it was computed from.

    `paths`: models and pictures, None for one that is not there; each is read once more, for its hash, and of a split
    model every file. `runs`: the backend and the settings, in words."""
    digests = hashes(path for path in paths if path is not None)
    listed = [(path.name, f"{path.stat().st_size:,}", digest) for path, digest in digests.items()]
    made = [f"{name} {version}" for name, version in versions().items()]
    footer = environment().from_string(FOOTER).render(command=command, files=listed, versions=made, runs=runs)
    before, end, after = page.rpartition("</main>")
    return f"{before}{footer}{end}{after}"
