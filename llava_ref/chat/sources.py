"""Decode a picture that a message holds as text: a data URI, base64 or a URL."""

import base64
import re
from urllib.parse import unquote

from ..errors import PromptError

BASE64 = re.compile(r"(?:[A-Za-z0-9+/]*|[A-Za-z0-9_-]*)={0,2}")
ESCAPED = 1 << 20  # characters that one call of `unquote` takes
SMALLEST_PICTURE = 20  # bytes; files of the formats we read are never as short, decoded paths and words may be


class Url(str):
    """The address of a picture that is not fetched yet."""

    __slots__ = ()


def decode_source(text: str, where: str, field: str, urls: bool) -> bytes | Url:
    """Decode the bytes of a file. With `urls`, an http or https URL is returned as it is. Raises PromptError."""
    start = text[:4096].lstrip()
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", start)
    name = scheme[0].lower() if scheme else ""
    if name in ("http:", "https:"):
        if urls:
            return Url(text.strip())
        raise PromptError(where, field, "URL images are off, expected a data URI or base64")
    if name == "data:":
        label, comma, data = text.partition(",")
        if not comma or "base64" not in [word.strip().lower() for word in label.lstrip()[5:].split(";")]:
            raise PromptError(where, field, "a data URI must be 'data:<type>;base64,<data>'")
        return _from_base64(_unescaped(data), where, field)
    if name:
        problem = f"{name} is not supported and files are not opened here, expected a data URI or base64"
        raise PromptError(where, field, problem)
    file = _from_base64(text, where, field)
    if len(file) < SMALLEST_PICTURE:
        raise PromptError(where, field, "too short for a picture (files are not opened here), expected base64")
    return file


def _unescaped(text: str) -> str:
    """Remove the percent-escapes of a data URI (RFC 2397), a block at a time: `unquote` makes a list of all escapes."""
    blocks, start = [], 0
    while "%" in text and start < len(text):
        end = start + ESCAPED
        end += 2 if text[end - 1 : end] == "%" else text[end - 2 : end - 1] == "%"  # no escape is cut
        blocks.append(unquote(text[start:end], "latin-1"))
        start = end
    return "".join(blocks) or text


def _from_base64(text: str, where: str, field: str) -> bytes:
    """Decode base64, raw or URL-safe, with or without white space and padding. Raises PromptError."""
    compact = "".join(text.split())
    body = compact.rstrip("=")
    if not BASE64.fullmatch(compact):
        raise PromptError(where, field, "not base64: a character that does not belong (files are not opened here)")
    if len(body) % 4 == 1 or (len(compact) != len(body) and len(compact) % 4):
        raise PromptError(where, field, f"not base64: cut short, or wrong padding ({len(compact)} characters)")
    if not body:
        raise PromptError(where, field, "empty, expected the base64 of a picture")
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
