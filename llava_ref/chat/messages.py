"""Parse conversations as users send them into `Message`s. Every error names the place by its JSON path.

The forms are OpenAI's and common variants: pictures as `image_url` (object or string), `input_image`, Hugging Face's
`image` and Anthropic's `source`; data URIs with any label, raw and URL-safe base64, with white space, without padding.
A key that would change the meaning is refused by name, never ignored. Pictures are fetched only if the caller supplies
`fetch`. Only base64 is decoded here: `images` decodes the files.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import PromptError
from ..images.decoding import MAX_IMAGES
from .calls import ToolCall, find_call, parse_calls
from .sources import Url, decode_source

MAX_MESSAGES = 1024
ImageSource = bytes | str | Path | Image.Image | np.ndarray
Role = Literal["system", "user", "assistant", "tool"]
ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip
TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image_url", "input_image", "image")
IMAGE_KEYS = ("image_url", "image", "url", "path", "base64", "source")
HINTS = ("type", "detail", "cache_control")  # keys that change neither text nor pictures
MESSAGE_KEYS = ("role", "content", "prefix", *HINTS)  # prefix asks to continue this message, which happens anyway
ROLE_KEYS = {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}  # a result has the name of its call
# keys with text, pictures or the like: ignoring one would change the conversation
CALLS = ("tool_calls", "tool_call_id", "function_call")
CONTENT_KEYS = (*CALLS, "audio", "input_audio", "video", "video_url", "file", "file_id", "images", "text", *IMAGE_KEYS)


@dataclass(frozen=True, slots=True)
class TextPart:
    """A text of a message, and its JSON path."""

    text: str
    where: str = "text"


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture that is not decoded yet: the bytes of a file, its path or URL, or pixels."""

    source: ImageSource
    where: str = "image"
    detail: str | None = None
    """The requested resolution. It has no effect: the model sees every picture at its own."""


@dataclass(frozen=True, slots=True)
class Message:
    """The parts of one message, in order."""

    role: Role
    parts: tuple[TextPart | ImagePart, ...]
    listed: bool = False
    """Whether the content was written as a list: a template may treat a list of one text otherwise than a string."""
    calls: tuple[ToolCall, ...] = ()
    """The functions that a message of the assistant calls."""
    result_of: ToolCall | None = None
    """The call whose result a message of a tool is."""


ReadPicture = Callable[[Mapping[str, Any], str], ImagePart]
Fetch = Callable[[str, str], bytes]  # (URL, its JSON path) -> the file; raises a LlavaError that names the path


def parse_messages(
    messages: object, where: str = "messages", *, allow_objects: bool = True, fetch: Fetch | None = None
) -> list[Message]:
    """Parse and check a conversation. Raises PromptError, which names the first place that cannot be read.

    With `allow_objects`, a part `{"type": "image", "image": ...}` may hold a path, bytes, a PIL image or an array: only
    a program can write these. Requests from a network must be parsed without it, so that no path in them is opened.
    `fetch` gets the pictures at http and https URLs; without it they are refused."""
    read = partial(_read_object if allow_objects else _read_data, urls=fetch is not None)
    parsed = _parse(messages, where, read)
    if fetch is None:
        return parsed
    # only now, so that nothing is fetched for a conversation that is refused
    return [replace(message, parts=tuple(_fetched(part, fetch) for part in message.parts)) for message in parsed]


def _fetched(part: TextPart | ImagePart, fetch: Fetch) -> TextPart | ImagePart:
    """Fetch the picture of a part that is a URL."""
    if isinstance(part, ImagePart) and isinstance(part.source, Url):
        return replace(part, source=fetch(part.source, part.where))
    return part


def parse_slots(messages: object, where: str = "messages") -> list[Message]:
    """Parse a conversation for the places of its pictures: any part of an image type will do, and holds no picture."""
    return _parse(messages, where, lambda part, where: ImagePart(b"", where))


def _parse(messages: object, where: str, read: ReadPicture) -> list[Message]:
    """Parse a conversation, its pictures by `read`."""
    if not isinstance(messages, list | tuple):
        raise PromptError(where, "type", f"expected a list of messages, got {type(messages).__name__}")
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise PromptError(where, "length", f"{len(messages)} messages, expected 1 to {MAX_MESSAGES}")
    parsed: list[Message] = []
    calls: list[ToolCall] = []
    for i, message in enumerate(messages):
        parsed.append(_message(message, f"{where}[{i}]", read, calls))
        calls += parsed[-1].calls
    pictures = [part for message in parsed for part in message.parts if isinstance(part, ImagePart)]
    if len(pictures) > MAX_IMAGES:
        raise PromptError(pictures[MAX_IMAGES].where, "image", f"{len(pictures)} images, expected at most {MAX_IMAGES}")
    return parsed


def _message(message: object, where: str, read: ReadPicture, calls: Sequence[ToolCall]) -> Message:
    """Parse one message; `calls` are those of the messages before it."""
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping):
        raise PromptError(where, "type", f"expected an object with 'role' and 'content', got {type(message).__name__}")
    name = message.get("role")
    if name == "function":
        raise PromptError(where, "role", "'function' is not supported, expected 'tool' with a tool_call_id")
    if not isinstance(name, str) or name not in ROLES:
        raise PromptError(where, "role", f"{name!r} is unknown, expected one of {', '.join(ROLES)}")
    _refuse_content(message, _known_keys(message), where)
    content, role, listed = message.get("content"), ROLES[name], isinstance(message.get("content"), list | tuple)
    parts = _content(content, role, f"{where}.content", read)
    if role == "tool":
        found = find_call(message.get("tool_call_id"), calls, f"{where}.tool_call_id")
        return Message(role, parts, listed, result_of=found)
    made = parse_calls(message.get("tool_calls"), f"{where}.tool_calls") if role == "assistant" else ()
    return Message(role, parts, listed, made)


def _known_keys(message: Mapping[str, Any]) -> Sequence[str]:
    """Return the keys of a message that have an effect."""
    role = message.get("role")
    return (*MESSAGE_KEYS, *(ROLE_KEYS.get(role, ()) if isinstance(role, str) else ()))


def _content(content: object, role: Role, where: str, read: ReadPicture) -> tuple[TextPart | ImagePart, ...]:
    """Parse a message's content: a string or a list of parts, and for an assistant maybe nothing."""
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
    """Parse one part of a message."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise PromptError(where, "type", "a content part must be an object with a 'type'")
    if kind in TEXT_TYPES:
        _refuse_content(part, ("text",), where)
        return _text(part.get("text"), f"{where}.text")
    if kind in IMAGE_TYPES:
        _refuse_content(part, IMAGE_KEYS, where)
        return replace(read(part, where), detail=_detail(part))
    raise PromptError(where, "type", f"cannot read a content part of type {kind!r}, expected text or image_url")


def _detail(part: Mapping[str, Any]) -> str | None:
    """Get `detail`, beside the picture or inside `image_url`, unless it leaves the size to the model."""
    places = (part, part.get("image_url"))
    details = [place.get("detail") for place in places if isinstance(place, Mapping)]
    return next((str(detail) for detail in details if detail not in (None, "", "auto")), None)


def _text(text: object, where: str) -> TextPart:
    """Check a text. Raises PromptError for an unpaired surrogate, which no encoding can express."""
    if not isinstance(text, str):
        raise PromptError(where, "type", f"expected a string, got {_kind(text)}")
    lone = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None) if not text.isascii() else None
    if lone is not None:
        raise PromptError(where, f"character {lone}", "half of a surrogate pair, which is not text")
    return TextPart(text, where)


def _read_object(part: Mapping[str, Any], where: str, *, urls: bool = False) -> ImagePart:
    """Read a picture from a program: an object in `image` or `path`, or anything that `_read_data` reads."""
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
    """Read a picture that is text: a data URI, base64 or a URL. No file is opened."""
    key = _one_source(part, where)
    value, field = part[key], key
    if key == "path":
        raise PromptError(where, field, "files are not opened here, expected image_url with a data URI or base64")
    if key == "image_url" and isinstance(value, Mapping):
        _refuse_content(value, ("url",), f"{where}.image_url")
        value, field = value.get("url"), "image_url.url"
    elif key == "source" and isinstance(value, Mapping):
        name = "data" if value.get("type") == "base64" else "url"
        _refuse_content(value, (name,), f"{where}.source")
        value, field = value.get(name), f"source.{name}"
    if not isinstance(value, str):
        raise PromptError(where, field, f"expected a string with a data URI or base64, got {_kind(value)}")
    return ImagePart(decode_source(value, where, field, urls), f"{where}.{field}")


def _one_source(part: Mapping[str, Any], where: str) -> str:
    """Return the key that holds the picture. Raises PromptError unless there is exactly one."""
    keys = [key for key in IMAGE_KEYS if part.get(key) is not None]
    if len(keys) != 1:
        found = " and ".join(keys) or "none"
        raise PromptError(where, "image", f"found {found}, expected one of {', '.join(IMAGE_KEYS)}")
    return keys[0]


def _refuse_content(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise PromptError for a content key that is neither `known` nor empty."""
    for key, value in content.items():
        if key in CONTENT_KEYS and key not in known and not _empty(value):
            raise PromptError(where, key, "not supported here", code="unsupported_parameter")


def unheard(messages: object, where: str = "messages") -> list[str]:
    """Return the JSON paths of the keys in a conversation that have no effect."""
    paths: list[str] = []
    for path, content, known in _objects(messages, where):
        paths += [f"{path}.{key}" for key, value in content.items() if key not in known and not _empty(value)]
    return paths


def _objects(messages: object, where: str) -> Iterator[tuple[str, Mapping[str, Any], Sequence[str]]]:
    """Yield the JSON path of each object in a conversation, the object, and the keys that have an effect in it."""
    for i, message in enumerate(messages if isinstance(messages, list | tuple) else ()):
        if not isinstance(message, Mapping):
            continue
        yield f"{where}[{i}]", message, _known_keys(message)
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list | tuple) else ()):
            if not isinstance(part, Mapping):
                continue
            path = f"{where}[{i}].content[{j}]"
            yield path, part, ("text", *IMAGE_KEYS, *HINTS)
            for key in ("image_url", "source"):
                if isinstance(part.get(key), Mapping):
                    yield f"{path}.{key}", part[key], ("url", "data", "media_type", *HINTS)


def _empty(value: object) -> bool:
    """Say whether a value is null, empty or false."""
    return value is None or (isinstance(value, bool | str | list | tuple | Mapping) and not value)


def _kind(value: object) -> str:
    """Name the type of a value for an error."""
    return "nothing" if value is None else type(value).__name__
