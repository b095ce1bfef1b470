"""Serves the page at `/`: static files that load nothing from other hosts, and the `/page.json` that they request."""

import base64
import json
from importlib.resources import files
from typing import Any

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .. import scale
from ..errors import GGUFError, printable
from ..gguf.file import GGUFFile
from ..html import asset
from ..loading import embedded
from .limits import Limits
from .models import LoadedModel
from .respond import send_bytes

SCRIPTS = (
    "page", "turns", "pictures", "redraw", "header", "settings", "keep", "progress", "look", "map", "follow", "words",
    "base",
)  # fmt: skip
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/scale.css": (None, "text/css; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in SCRIPTS},
}
"""Path -> (file, content type); the scale's style is no file. They hold no secret, so they need no key."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class StaticFile:
    """An ASGI application that serves one file of the page."""

    def __init__(self, name: str | None, content_type: str) -> None:
        self._body, self._type = (scale.style() if name is None else asset(name)).encode(), content_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_bytes(send, 200, self._body, self._type, HEADERS)


def page_routes() -> list[Route]:
    return [Route(path, StaticFile(*file), methods=["GET"]) for path, file in FILES.items()]


def page_info(loaded: LoadedModel | None, limits: Limits) -> dict[str, Any]:
    """Return what the page shows before the first question, and the limits of what it may send."""
    names = ("max_body", "max_images", "max_pixels")
    known = {"object": "page", "limits": {name: getattr(limits, name) for name in names}}
    if loaded is None:
        return {**known, "model": None, "description": "", "vision": False, "context": 0, "samples": []}
    model = loaded.model
    return {
        **known,
        "model": loaded.name,
        "description": described(loaded),
        "vision": model.has_tower,
        "context": model.n_context,
        "exif": model.quirks.exif,
        "alpha": model.quirks.alpha,
        "samples": samples() if _is_embedded(loaded) else [],
    }


def described(loaded: LoadedModel) -> str:
    """Describe the model in one line: what the embedded pair can recognise, or the name and description in a file."""
    if _is_embedded(loaded):
        return "the embedded model, which knows drawn shapes, digits and words, nothing else"
    file = loaded.model.text.file
    assert file is not None
    texts = [text for key in ("general.name", "general.description") if (text := _text(file, key))]
    return printable(", ".join(texts or ["a model without a name in its file"]), 200)


def _text(file: GGUFFile, key: str) -> str:
    """Return the string at `key`, or "" if it is missing or malformed: a bad description must not refuse a file."""
    try:
        return file.string(key, "")
    except GGUFError:
        return ""


def _is_embedded(loaded: LoadedModel) -> bool:
    return loaded.pair == tuple(path.resolve() for path in embedded())


def samples() -> list[dict[str, str]]:
    """Return the sample pictures of the embedded pair, each with its name and its question."""
    folder = files("llava_ref") / "assets" / "pictures"
    listed = json.loads((folder / "pictures.json").read_text("utf-8"))
    return [
        {"name": one["file"], "question": one["question"], "picture": _uri((folder / one["file"]).read_bytes())}
        for one in listed
    ]


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
