"""Put pictures that a request names by path into the request, as data URIs.

A path is written as vLLM and llama.cpp's server take it, as a URL: `file:///data/cat.png`, or relative to the folder of
the file of requests, `file://pictures/cat.png`. No file is opened outside the folders that the operator named.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..api.limits import Limits
from ..chat.messages import IMAGE_KEYS, IMAGE_TYPES
from ..errors import ImageError, PromptError
from ..images.decoding import MAX_ENCODED, read_file
from ..images.parts import recognise

SCHEME = "file://"


class Folders:
    """The folders whose pictures may be read. `base`: the one that relative paths begin in."""

    def __init__(self, base: Path, allowed: tuple[Path, ...]) -> None:
        self._base, self._allowed = base, tuple(folder.resolve() for folder in allowed)

    def read(self, url: str, where: str) -> bytes:
        """Return the bytes of the file at a `file://` URL. Raises ImageError, which names `where` and no other path.

        Links are resolved. Outside the folders a file is refused whether it is there or not."""
        try:
            path = (self._base / unquote(url[len(SCHEME) :])).resolve()
        except (OSError, ValueError, RuntimeError):  # a zero byte, a loop of links
            raise ImageError(where, "URL", "not a path") from None
        if not any(path.is_relative_to(folder) for folder in self._allowed):
            raise ImageError(
                where, "URL", "its file is in no folder that pictures may be read from (--allow-image-dir)"
            )
        try:
            data = read_file(path)
        except ImageError as error:
            raise ImageError(where, error.field, error.problem) from None
        if len(data) > MAX_ENCODED:
            raise ImageError(where, "size", f"over {MAX_ENCODED:,} bytes encoded", code="image_too_large")
        recognise(data, where, quoted=False)
        return data


def inlined(body: dict[str, Any], folders: Folders, limits: Limits) -> Iterator[bytes]:
    """Yield the bytes of each picture that a request names by path, and put them in their places as data URIs.

    Raises ImageError and PromptError, for more pictures or bytes than a request may have too."""
    total = 0
    for count, (holder, key, where) in enumerate(_paths(body), 1):
        if count > limits.max_images:
            raise PromptError(where, "image", f"over {limits.max_images} images, expected at most that many")
        data = folders.read(holder[key], where)
        total += len(data)
        if total > limits.max_body:
            problem = f"over {limits.max_body:,} bytes with the pictures before it"
            raise ImageError(where, "size", problem, code="image_too_large")
        holder[key] = "data:;base64," + base64.b64encode(data).decode("ascii")
        yield data


def _paths(body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield the places of pictures that are named by path: the object, its key, and the JSON path."""
    for name in ("messages", "input"):
        for i, message in enumerate(_list(body.get(name))):
            content = message.get("content") if isinstance(message, dict) else None
            for j, part in enumerate(_list(content)):
                if isinstance(part, dict) and part.get("type") in IMAGE_TYPES:
                    yield from _sources(part, f"{name}[{i}].content[{j}]")


def _sources(part: dict[str, Any], where: str) -> Iterator[tuple[dict[str, Any], str, str]]:
    for key in IMAGE_KEYS:
        value = part.get(key)
        if isinstance(value, dict):
            yield from _sources(value, f"{where}.{key}")
        elif isinstance(value, str) and value.startswith(SCHEME):
            yield part, key, f"{where}.{key}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
