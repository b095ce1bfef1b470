"""Conversations as users send them -> `Message`s. Every error names the place by its JSON path.

The shapes are OpenAI's, and the variants that are seen in the wild: pictures as `image_url` (object or string),
`input_image`, Hugging Face's `image` and Anthropic's `source`; data URIs with any label, raw and URL-safe base64, with
white space, without padding. Nothing that would change the meaning is ignored: it is refused, by name. Nothing is
fetched unless the caller says how, and nothing is decoded but base64: what the bytes are is `images`' business.
"""

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
from PIL import Image

from ..errors import PromptError
from ..images.decoding import MAX_IMAGES

MAX_MESSAGES = 1024
ImageSource = bytes | str | Path | Image.Image | np.ndarray
Role = Literal["system", "user", "assistant"]
ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image_url", "input_image", "image")
IMAGE_KEYS = ("image_url", "image", "url", "path", "base64", "source")
HINTS = ("type", "detail", "cache_control")  # keys that change neither what is said nor what is shown
MESSAGE_KEYS = ("role", "content", "prefix", *HINTS)  # prefix: "continue this message", which is done anyway
# keys that say or show something, so that leaving one out would change the conversation
CALLS = ("tool_calls", "tool_call_id", "function_call")
TELLING = (*CALLS, "audio", "input_audio", "video", "video_url", "file", "file_id", "images", "text", *IMAGE_KEYS)
BASE64 = re.compile(r"(?:[A-Za-z0-9+/]*|[A-Za-z0-9_-]*)={0,2}")
ESCAPED = 1 << 20  # characters whose escapes are looked at together
SMALLEST_PICTURE = 20  # bytes; no format we read has a file this short, a path or a word may be


class Url(str):
    """Where a picture is, before it is fetched."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str
    where: str = "text"


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture, not looked at yet: the bytes of a file, where the file is, or pixels."""

    source: ImageSource
    where: str = "image"
    detail: str | None = None
    """A size that was asked for and has no effect: a model sees every picture at its own."""


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[TextPart | ImagePart, ...]
    listed: bool = False
    """Whether a lone text was written as a list of parts, which a template may read otherwise than a string."""


ReadPicture = Callable[[Mapping[str, Any], str], ImagePart]
Fetch = Callable[[str, str], bytes]  # (URL, where it stands) -> the file; raises a LlavaError that names the place


def parse_messages(
    messages: object, where: str = "messages", *, allow_objects: bool = True, fetch: Fetch | None = None
) -> list[Message]:
    """A conversation, checked. PromptError names the first place that cannot be read.

    `allow_objects`: a part `{"type": "image", "image": ...}` may hold a path, bytes, a PIL image or an array, which
    only a program can write. What comes over a network must be parsed without: no path in it is ever opened.
    `fetch` gets the pictures at http and https URLs; without it they are refused."""
    read = partial(_read_object if allow_objects else _read_data, urls=fetch is not None)
    parsed = _parse(messages, where, read)
    if fetch is None:
        return parsed
    return [replace(message, parts=tuple(_fetched(part, fetch) for part in message.parts)) for message in parsed]


def _fetched(part: TextPart | ImagePart, fetch: Fetch) -> TextPart | ImagePart:
    """Once all is known to be in order, so that nothing is fetched for a conversation that is refused."""
    if isinstance(part, ImagePart) and isinstance(part.source, Url):
        return replace(part, source=fetch(part.source, part.where))
    return part


def parse_slots(messages: object, where: str = "messages") -> list[Message]:
    """The same, where only the places of pictures matter: any part of an image type will do, and holds no picture."""
    return _parse(messages, where, lambda part, where: ImagePart(b"", where))


def _parse(messages: object, where: str, read: ReadPicture) -> list[Message]:
    if not isinstance(messages, list | tuple):
        raise PromptError(where, "type", f"expected a list of messages, got {type(messages).__name__}")
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise PromptError(where, "length", f"{len(messages)} messages, expected 1 to {MAX_MESSAGES}")
    parsed = [_message(message, f"{where}[{i}]", read) for i, message in enumerate(messages)]
    pictures = [part for message in parsed for part in message.parts if isinstance(part, ImagePart)]
    if len(pictures) > MAX_IMAGES:
        raise PromptError(pictures[MAX_IMAGES].where, "image", f"one too many, expected at most {MAX_IMAGES} images")
    return parsed


def _message(message: object, where: str, read: ReadPicture) -> Message:
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping):
        raise PromptError(where, "type", f"expected an object with 'role' and 'content', got {type(message).__name__}")
    name = message.get("role")
    if name in ("tool", "function"):
        raise PromptError(where, "role", f"{name!r}: messages from tools are not supported")
    if not isinstance(name, str) or name not in ROLES:
        raise PromptError(where, "role", f"{name!r} is unknown, expected one of {', '.join(ROLES)}")
    _tell_no_more(message, MESSAGE_KEYS, where)
    content = message.get("content")
    parts = _content(content, ROLES[name], f"{where}.content", read)
    return Message(ROLES[name], parts, isinstance(content, list | tuple))


def _content(content: object, role: Role, where: str, read: ReadPicture) -> tuple[TextPart | ImagePart, ...]:
    if isinstance(content, str):
        return (_text(content, where),)
    if role == "assistant" and content is None:
        return ()
    if not isinstance(content, list | tuple):
        raise PromptError(where, "type", f"expected a string or a list of parts, got {_kind(content)}")
    if not content and role != "assistant":
        raise PromptError(where, "length", "an empty list, expected at least one part")
    return tuple(_part(part, f"{where}[{i}]", read) for i, part in enumerate(content))


def _part(part: object, where: str, read: ReadPicture) -> TextPart | ImagePart:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise PromptError(where, "type", "a content part must be an object with a 'type'")
    if kind in TEXT_TYPES:
        _tell_no_more(part, ("text",), where)
        return _text(part.get("text"), f"{where}.text")
    if kind in IMAGE_TYPES:
        _tell_no_more(part, IMAGE_KEYS, where)
        return replace(read(part, where), detail=_detail(part))
    raise PromptError(where, "type", f"cannot read a content part of type {kind!r}, expected text or image_url")


def _detail(part: Mapping[str, Any]) -> str | None:
    """`detail`, beside the picture or inside `image_url`, unless it leaves the size to the model."""
    inside = part.get("image_url")
    given = [place.get("detail") for place in (part, inside) if isinstance(place, Mapping)]
    return next((str(detail) for detail in given if detail not in (None, "", "auto")), None)


def _text(text: object, where: str) -> TextPart:
    if not isinstance(text, str):
        raise PromptError(where, "type", f"expected a string, got {_kind(text)}")
    lone = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None) if not text.isascii() else None
    if lone is not None:
        raise PromptError(where, f"character {lone}", "half of a surrogate pair, which is not text")
    return TextPart(text, where)


def _read_object(part: Mapping[str, Any], where: str, *, urls: bool = False) -> ImagePart:
    """What a program may pass in `image` and `path`, and all that `_read_data` reads."""
    value = part.get("image") if part.get("path") is None else part["path"]
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value)
    elif isinstance(value, str) and not re.match(r"(?i)\s*(data|https?):", value):
        value = Path(value)
    if isinstance(value, bytes | Path | Image.Image | np.ndarray):
        _one_source(part, where)
        return ImagePart(value, where)
    return _read_data(part, where, urls=urls)


def _read_data(part: Mapping[str, Any], where: str, *, urls: bool = False) -> ImagePart:
    """A picture that came as text: a data URI or base64."""
    key = _one_source(part, where)
    value, field = part[key], key
    if key == "path":
        raise PromptError(where, field, "files are not opened here, expected image_url with a data URI or base64")
    if key == "image_url" and isinstance(value, Mapping):
        _tell_no_more(value, ("url",), f"{where}.image_url")
        value, field = value.get("url"), "image_url.url"
    elif key == "source" and isinstance(value, Mapping):
        name = "data" if value.get("type") == "base64" else "url"
        _tell_no_more(value, (name,), f"{where}.source")
        value, field = value.get(name), f"source.{name}"
    if not isinstance(value, str):
        raise PromptError(where, field, f"expected a string with a data URI or base64, got {_kind(value)}")
    return ImagePart(_from_text(value, where, field, urls), f"{where}.{field}")


def _one_source(part: Mapping[str, Any], where: str) -> str:
    given = [key for key in IMAGE_KEYS if part.get(key) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise PromptError(where, "image", f"found {found}, expected one of {', '.join(IMAGE_KEYS)}")
    return given[0]


def _from_text(text: str, where: str, field: str, urls: bool) -> bytes | Url:
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
    data_bytes = _from_base64(text, where, field)
    if len(data_bytes) < SMALLEST_PICTURE:
        raise PromptError(where, field, "too short for a picture (files are not opened here), expected base64")
    return data_bytes


def _unescaped(text: str) -> str:
    """Return the data of a data URI without percent-escapes (RFC 2397), in pieces: `unquote` lists every escape."""
    pieces, at = [], 0
    while "%" in text and at < len(text):
        end = at + ESCAPED
        end += 2 if text[end - 1 : end] == "%" else text[end - 2 : end - 1] == "%"
        pieces.append(unquote(text[at:end], "latin-1"))
        at = end
    return "".join(pieces) or text


def _from_base64(text: str, where: str, field: str) -> bytes:
    compact = "".join(text.split())
    body = compact.rstrip("=")
    if not BASE64.fullmatch(compact):
        raise PromptError(where, field, "not base64: a character that does not belong (files are not opened here)")
    if len(body) % 4 == 1 or (len(compact) != len(body) and len(compact) % 4):
        raise PromptError(where, field, f"not base64: cut short, or wrong padding ({len(compact)} characters)")
    if not body:
        raise PromptError(where, field, "empty, expected the base64 of a picture")
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


def _tell_no_more(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuses what would be said or shown beside `known`, unless it is empty."""
    for key, value in given.items():
        if key in TELLING and key not in known and not _empty(value):
            raise PromptError(where, key, "not supported here")


def unheard(messages: object, where: str = "messages") -> list[str]:
    """Return the places of keys in a conversation that have no effect."""
    found: list[str] = []
    for place, given, known in _objects(messages, where):
        found += [f"{place}.{key}" for key, value in given.items() if key not in known and not _empty(value)]
    return found


def _objects(messages: object, where: str) -> Iterator[tuple[str, Mapping[str, Any], Sequence[str]]]:
    """Yield the objects that a conversation is made of, each with its place and the keys that count in it."""
    for i, message in enumerate(messages if isinstance(messages, list | tuple) else ()):
        if not isinstance(message, Mapping):
            continue
        yield f"{where}[{i}]", message, MESSAGE_KEYS
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list | tuple) else ()):
            if not isinstance(part, Mapping):
                continue
            place = f"{where}[{i}].content[{j}]"
            yield place, part, ("text", *IMAGE_KEYS, *HINTS)
            for key in ("image_url", "source"):
                if isinstance(part.get(key), Mapping):
                    yield f"{place}.{key}", part[key], ("url", "data", "media_type", *HINTS)


def _empty(value: object) -> bool:
    """Null, empty and false say nothing."""
    return value is None or (isinstance(value, bool | str | list | tuple | Mapping) and not value)


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
