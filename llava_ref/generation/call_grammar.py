"""Writes the grammar of answers that call functions, in llguidance's language (docs/syntax.md of its repository).

Calls have the form of the model's chat template (`chat.call_form`), and their arguments match the functions' schemas.
Where words are allowed as well, they go on to the text that begins a call; from there on it must be one. If JSON begins
a call, only the first character of an answer decides.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..chat.call_form import ARGUMENTS_HERE, NAME_HERE, CallForm
from ..chat.calls import Tool
from .schemas import closed

MAX_SCHEMAS = 100_000  # characters of all functions' schemas together, as JSON


class CallSource:
    """Writes grammars of calls in one form. `control`: the id of each control token, by its text."""

    def __init__(self, form: CallForm, control: Mapping[str, int], several: bool) -> None:
        self._form, self._control, self._several = form, control, several
        self._guidance = {
            "whitespace_flexible": False, "item_separator": form.comma, "key_separator": form.colon,
        }  # fmt: skip

    @property
    def has_control(self) -> bool:
        """Say whether control tokens belong to the form."""
        text = "".join(filter(None, (self._form.opening, self._form.between, self._form.joint, self._form.closing)))
        return any(isinstance(part, int) for part in split_control(text, self._control))

    def grammar(self, tools: Sequence[Tool], text: bool | Mapping[str, Any]) -> str:
        """Return the grammar; `text`: see `JsonGrammars.calls`. Raises TooManyBranches."""
        if isinstance(text, Mapping) and not self._form.trigger:
            return "start: " + self._json(_one_of(self._form, tools, text))
        more = f"({self._literal(self._form.joint or '')} call)*" if self._several else ""
        rules = [f"calls: call {more} {self._literal(self._form.closing)}", *self._calls(tools)]
        return "\n".join(["%llguidance {}", *self._start(text), *rules])

    def _start(self, text: bool | Mapping[str, Any]) -> list[str]:
        """Return the rules above `calls`: what may stand before them or in their place."""
        form = self._form
        opening = f"{self._literal(form.opening)} calls"
        if isinstance(text, Mapping):
            return [f"start: {opening} | text", f"text: {self._json(closed(text))}"]
        if not text:
            return [f"start: {opening}"]
        anything = "ANYTHING: /(.|\\n)*/"
        first, *_ = split_control(form.opening, self._control)
        if isinstance(first, int):
            return [f"start: ANYTHING | ANYTHING? {opening}", anything]
        if form.trigger:
            rest = self._literal(form.opening.removeprefix(form.trigger))
            return [f"start: ANYTHING | lead {rest} calls", f"lead[lazy]: ANYTHING {_quoted(form.trigger)}", anything]
        begins = re.escape(form.opening[0])
        return [
            f"start: WORDS | BLANK? {opening}", "BLANK: /[ \\n]{1,2}/",
            f"WORDS: /[ \\n]*([^ \\n{begins}](.|\\n)*)?/",
        ]  # fmt: skip

    def _calls(self, tools: Sequence[Tool]) -> Iterator[str]:
        """Yield the rules of a call behind the text that opens it."""
        yield "call: " + " | ".join(f"call_{i}" for i in range(len(tools)))
        for i, tool in enumerate(tools):
            name = self._literal(tool.name + self._form.between)
            yield f"call_{i}: {name} {self._json(closed(tool.parameters))}"

    def _json(self, schema: Mapping[str, Any]) -> str:
        return "%json " + json.dumps({**schema, "x-guidance": self._guidance})

    def _literal(self, text: str) -> str:
        parts = split_control(text, self._control)
        return " ".join(f"<[{part}]>" if isinstance(part, int) else _quoted(part) for part in parts)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def split_control(text: str, control: Mapping[str, int]) -> list[str | int]:
    """Split a text at control tokens, which become their ids."""
    if not control:
        return [text] if text else []
    texts = sorted(filter(None, control), key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, texts)) + ")", text)
    return [control.get(part, part) for part in parts if part]


def _one_of(form: CallForm, tools: Sequence[Tool], text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an answer that is JSON of the schema `text`, or one call in a form that is JSON."""
    options = [_moved(closed(text), "#/anyOf/0")]
    options += [_call_schema(form.json, tool, f"#/anyOf/{i}") for i, tool in enumerate(tools, 1)]
    return {"anyOf": options}


def _call_schema(like: Any, tool: Tool, root: str) -> Any:
    """Return the schema of a call that looks `like` the form's; `root` is the place of the schema in its document."""
    if like == ARGUMENTS_HERE:
        return _moved(closed(tool.parameters), root)
    if isinstance(like, dict):
        properties = {key: _call_schema(x, tool, f"{root}/properties/{key}") for key, x in like.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    if isinstance(like, list):
        items = [_call_schema(x, tool, f"{root}/prefixItems/{i}") for i, x in enumerate(like)]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    return {"const": tool.name if like == NAME_HERE else like}


def _moved(schema: Any, root: str) -> Any:
    """Return a schema whose references hold at another place of a document."""
    if isinstance(schema, list):
        return [_moved(x, root) for x in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(x, root) for key, x in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
