"""Functions that a model may call: as users describe them, the calls in a conversation, and the results.

`call_form` says how a model's chat template writes them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # OpenAI's, and the dots of other services
MAX_CALLS = 128  # of one message


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters`: a JSON Schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    where: str = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an earlier message of the assistant made."""

    id: str
    name: str
    arguments: Mapping[str, Any]
    where: str = "call"
    """The path of its name and arguments."""


def parse_calls(value: object, where: str) -> tuple[ToolCall, ...]:
    """Parse `tool_calls` of an assistant's message. Raises PromptError with the JSON path."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise PromptError(where, "type", f"expected a list of calls, got {type(value).__name__}")
    if len(value) > MAX_CALLS:
        raise PromptError(where, "length", f"{len(value)} calls, expected at most {MAX_CALLS}")
    return tuple(_call(call, f"{where}[{i}]") for i, call in enumerate(value))


def _call(call: object, where: str) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise PromptError(where, "function", "expected an object with the name and the arguments of a function")
    if call.get("type", "function") != "function":
        raise PromptError(where, "type", "expected function, the one kind of tool that is supported")
    return make_call(
        call.get("id"), function.get("name"), function.get("arguments"), f"{where}.id", f"{where}.function"
    )


def make_call(id: object, name: object, arguments: object, id_at: str, function: str) -> ToolCall:
    """Check the fields of a call. `id_at`: the path of its id; `function`: that of its name and arguments.

    Raises PromptError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PromptError(f"{function}.name", "type", "expected a name of 1 to 64 letters, digits, _, - and .")
    if not isinstance(id, str) or not 1 <= len(id) <= 1024:
        raise PromptError(id_at, "type", "expected a string of 1 to 1024 characters")
    try:
        known = json.loads(arguments or "{}") if isinstance(arguments, str | None) else arguments
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, Mapping):
        raise PromptError(f"{function}.arguments", "type", "expected a JSON object, as a string")
    _check_texts(known, f"{function}.arguments")
    return ToolCall(id, name, known, function)


def _check_texts(value: Any, where: str) -> None:
    """Raise PromptError for half a surrogate pair: the JSON within a string may hold one, escaped."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise PromptError(where, "text", "not JSON whose texts are Unicode") from None


def find_call(id: object, calls: Sequence[ToolCall], where: str) -> ToolCall:
    """Return the call that a message with its result names. Raises PromptError unless one comes before it."""
    found = next((call for call in reversed(calls) if call.id == id), None)
    if found is None:
        raise PromptError(where, "value", "no call of an earlier message has this id")
    return found
