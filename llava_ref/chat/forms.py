"""Put a conversation into the forms that chat templates accept, its texts marked.

A marked text carries a mark of its number at each character (`sandboxed.marked`); a picture has none. Texts in the
descriptions of tools, and in calls of them, are marked as well, names of properties included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import PromptError
from ..profiles import ImageOrder
from ..tokenizer.quote import IMAGE
from .calls import Tool, ToolCall
from .losses import Event, ExpectedMessage
from .messages import ImagePart, Message
from .sandboxed.marked import FIRST, STRUCTURE, Marked, joined

TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # after the text to continue, as in transformers: templates may look at it

MarkedParts = list[str | None]  # of one message: a Marked text, or None for a picture


@dataclass(frozen=True, slots=True)
class MarkedMessage:
    """A message with marked texts. `fields`: what it has besides role and content, as templates expect it."""

    role: str
    parts: MarkedParts
    listed: bool
    fields: Mapping[str, Any] = field(default_factory=dict)
    called: tuple[int, ...] = ()
    """The numbers of the names of the functions that it calls."""


@dataclass(slots=True)
class _Marker:
    """Marks texts, each with the next number. `paths` and `movable`: see `MarkedConversation`."""

    paths: dict[int, str] = field(default_factory=dict)
    movable: list[int] = field(default_factory=list)
    _next: int = 0

    def text(self, text: str, where: str | None) -> Marked:
        """Mark a text, which may be lost if `where` is None."""
        if where is not None and text.strip():
            self.paths[self._next] = where
        self._next += 1
        return Marked(text, chr(FIRST + self._next - 1) * len(text))

    def json(self, value: Any, where: str | None) -> Any:
        """Mark all texts of a JSON value with one number."""
        mark = chr(FIRST + self._next)
        self._next += 1
        made = _marked_json(value, mark)
        if where is not None and _has_text(value):
            self.paths[self._next - 1] = where
            self.movable.append(self._next - 1)
        return made

    def message(self, message: Message) -> MarkedMessage:
        parts: MarkedParts = [
            None if isinstance(part, ImagePart) else self.text(part.text, part.where) for part in message.parts
        ]
        fields: dict[str, Any] = {}
        called: list[int] = []
        if message.calls:
            fields["tool_calls"] = [self._call(call, called) for call in message.calls]
        if message.result_of is not None:
            id, name = message.result_of.id, message.result_of.name
            fields |= {"tool_call_id": self.text(id, None), "name": self.text(name, None)}
        return MarkedMessage(message.role, parts, message.listed, fields, tuple(called))

    def _call(self, call: ToolCall, called: list[int]) -> dict[str, Any]:
        called.append(self._next)
        name = self.text(call.name, f"{call.where}.name")
        arguments = self.json(call.arguments, f"{call.where}.arguments")
        return {
            "id": self.text(call.id, None),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def tool(self, tool: Tool) -> dict[str, Any]:
        first = self._next
        function = {
            "name": self.text(tool.name, f"{tool.where}.name"),
            "description": self.text(tool.description, f"{tool.where}.description"),
        }
        self.movable += [number for number in range(first, self._next) if number in self.paths]
        function["parameters"] = self.json(tool.parameters, f"{tool.where}.parameters")
        return {"type": "function", "function": function}


def _marked_json(value: Any, mark: str) -> Any:
    if isinstance(value, str):
        return Marked(value, mark * len(value))
    if isinstance(value, Mapping):
        return {Marked(key, mark * len(key)): _marked_json(x, mark) for key, x in value.items()}
    return [_marked_json(x, mark) for x in value] if isinstance(value, list | tuple) else value


def _has_text(value: Any) -> bool:
    """Say whether a JSON value has a text, names of properties included, that a rendering must show."""
    if isinstance(value, Mapping):
        return any(_has_text(x) for pair in value.items() for x in pair)
    return any(map(_has_text, value)) if isinstance(value, list | tuple) else isinstance(value, str) and value != ""


@dataclass(frozen=True, slots=True)
class MarkedConversation:
    """A conversation with marked texts. `paths` are the JSON paths, by number, of the texts that must not be lost."""

    messages: list[MarkedMessage]
    tools: list[dict[str, Any]] | None
    paths: dict[int, str]
    movable: frozenset[int]
    """The numbers of texts that may stand anywhere: of tools, and of the arguments of calls."""
    images: tuple[ImagePart, ...]
    order: ImageOrder
    last: str | None
    """The text to continue."""

    @classmethod
    def of(
        cls,
        messages: Sequence[Message],
        order: ImageOrder,
        continue_last: bool,
        answer_begins: bool,
        tools: Sequence[Tool] = (),
    ) -> "MarkedConversation":
        """Mark the texts of `messages`. Raises PromptError if there is nothing to continue, or an answer begins too."""
        marker = _Marker()
        marked = [marker.message(message) for message in messages]
        described = [marker.tool(tool) for tool in tools] or None
        last = _leave_open(marked[-1].parts, answer_begins) if continue_last else None
        images = tuple(part for message in messages for part in message.parts if isinstance(part, ImagePart))
        return cls(marked, described, marker.paths, frozenset(marker.movable), images, order, last)

    def contexts(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the variables for the template: `values` with the messages in each form, the preferred form first."""
        contents = self._contents()
        forms: list[list[dict[str, Any]]] = []
        for content in contents:
            form = [{"role": message.role, "content": content(message), **message.fields} for message in self.messages]
            if form not in forms:
                forms.append(form)
        # Hugging Face always passes `tools` and `documents`; templates compare them with none
        return [{"messages": form, "tools": self.tools, "documents": None, **values} for form in forms]

    def _contents(self) -> tuple[Callable[[MarkedMessage], object], ...]:
        """Return the functions that make a message's content, the preferred one first."""
        given = self.order == "given"
        arranged = _pictures_first if self.order == "first" else list
        as_text = _as_llama_cpp if given else _as_lines
        lists: tuple[Callable[[MarkedMessage], object], ...] = (
            lambda m: _as_written(arranged(m.parts), m.listed),
            lambda m: _as_list(arranged(m.parts)),
        )
        strings: tuple[Callable[[MarkedMessage], object], ...] = (
            lambda m: as_text(m.parts),
            lambda m: [{"type": _TEXT, "text": as_text(m.parts)}],  # keeps an order that the template would change
        )
        # with "given" strings come first: llama.cpp passes lists to no template that accepts strings
        return (strings[0], *lists, strings[1]) if given else (*lists, *strings)

    def expected(self) -> list[ExpectedMessage]:
        """Return the texts and pictures of each message, in the order in which the rendering should have them."""
        arranged = _pictures_first if self.order == "first" else list
        kept = [
            ExpectedMessage(
                tuple(e for e in (*map(_event, arranged(message.parts)), *message.called) if e in (None, *self.paths)),
                may_move=message.role == "system",
            )
            for message in self.messages
        ]
        return [*kept, ExpectedMessage(tuple(sorted(self.movable)), may_move=True)]


def _event(part: str | None) -> Event:
    """Return the number of a text, None for a picture, and -1, which is no number, for an empty text."""
    return None if part is None else ord(part._marks[0]) - FIRST if isinstance(part, Marked) and part else -1


def _leave_open(parts: MarkedParts, answer_begins: bool) -> str:
    """Put the tag after the last text; return that text. Raises PromptError as `of` does."""
    if answer_begins:
        problem = "true as well, expected one of the two: a message that goes on is not followed by an answer"
        raise PromptError("continue_final_message", "add_generation_prompt", problem)
    index = max((i for i, part in enumerate(parts) if part is not None), default=None)
    if index is None:
        raise PromptError("continue_final_message", "messages", "the last one has no text to continue")
    text = parts[index] or ""
    parts[index] = joined((text, TAG))
    return text


def _pictures_first(parts: MarkedParts) -> MarkedParts:
    """Move the pictures of a message before its texts."""
    return sorted(parts, key=lambda part: part is not None)


def _as_lines(parts: MarkedParts) -> str:
    """Return one string with the pictures first and every part on a line of its own, as LLaVA was trained."""
    arranged = _pictures_first(parts)
    return joined(x for i, part in enumerate(arranged) for x in ("\n" if i else "", IMAGE if part is None else part))


def _as_llama_cpp(parts: MarkedParts) -> str:
    """Return one string in the order given, with a line feed between two texts only, as llama.cpp b11549 does."""
    out: list[str] = []
    for previous, part in zip((None, *parts), parts, strict=False):
        out += ["\n"] if previous is not None and part is not None else []
        out.append(IMAGE if part is None else part)
    return joined(out)


def _as_written(parts: MarkedParts, listed: bool) -> str | list[dict[str, str]]:
    """Return the content as users write it: a single text as a string, anything else as a list."""
    if not listed and len(parts) < 2 and None not in parts:
        return parts[0] or "" if parts else ""
    return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]


def _as_list(parts: MarkedParts) -> list[dict[str, str]]:
    """Return a list that no user wrote, with marked types: a template that prints them does not understand lists."""
    return [{"type": _IMAGE} if part is None else {"type": _TEXT, "text": part} for part in parts]


_IMAGE, _TEXT = (Marked(name, STRUCTURE * len(name)) for name in ("image", "text"))
