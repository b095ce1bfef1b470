"""Serves the documentation of this version at `/docs/`: the pages of docs/ as HTML, and their pictures.

Nothing in a page runs or is loaded from elsewhere. They hold no secret, so they need no key.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from starlette.requests import Request
from starlette.types import Receive, Send

from ..html import asset, environment
from .errors import ApiError
from .page import HEADERS
from .respond import send_bytes

PLACE = "/docs/"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'; form-action 'none'; "
FOLDERS = (".", "images", "speed")
KINDS = {".md": "text/html; charset=utf-8", ".webp": "image/webp", ".svg": "image/svg+xml"}


async def docs(request: Request, receive: Receive, send: Send) -> None:
    """Send a page, or a picture, by the name of its file. Raises ApiError for any other name."""
    name = request.path_params["name"]
    if name not in _files():
        raise ApiError(404, f"no page {name[:100]!r}; {PLACE}README.md lists them", code="not_found")
    headers = {**HEADERS, "content-security-policy": POLICY + "frame-ancestors 'none'"}
    data = rendered(name) if name.endswith(".md") else _files()[name].read_bytes()
    await send_bytes(send, 200, data, KINDS[PurePath(name).suffix], headers)


@cache
def _files() -> Mapping[str, Traversable]:
    root = files("llava_ref.docs")
    entries = [entry for folder in FOLDERS for entry in root.joinpath(folder).iterdir()]
    return {entry.name: entry for entry in entries if PurePath(entry.name).suffix in KINDS}


@cache
def rendered(name: str) -> bytes:
    """Return a page as HTML. Links to what is not served here, such as files of the program, become text."""
    markdown = MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(_files()[name].read_text("utf-8"))
    title = _headings(tokens)
    for token in tokens:
        _relink(token.children or ())
    body = markdown.renderer.render(tokens, markdown.options, {})
    template = environment().from_string(asset("docs.html.jinja"))
    return template.render(title=title, body=Markup(body)).encode()


def _headings(tokens: Sequence[Token]) -> str:
    """Give each heading the anchor that it has on GitHub; return the first, the page's title."""
    title, seen = "", Counter[str]()
    for token, inside in zip(tokens, tokens[1:], strict=False):
        if token.type == "heading_open":
            text = "".join(child.content for child in inside.children or ())
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            token.attrSet("id", anchor + (f"-{seen[anchor]}" if seen[anchor] else ""))
            seen[anchor] += 1
            title = title or text
    return title


def _relink(tokens: Sequence[Token]) -> None:
    """Let links and pictures lead to the names under which files are served here."""
    gone = False
    for token in tokens:
        if token.type == "image":
            token.attrSet("src", str(token.attrGet("src")).rpartition("/")[2])
        elif token.type == "link_open":
            target, sign, anchor = str(token.attrGet("href")).partition("#")
            name = target.removeprefix("images/")
            gone = not (target == "" or "://" in target or name in _files())
            if gone:
                token.hidden = True
            elif "://" not in target:
                token.attrSet("href", name + sign + anchor)
        elif token.type == "link_close" and gone:
            token.hidden, gone = True, False
