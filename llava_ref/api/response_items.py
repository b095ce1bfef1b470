"""Reads the input of OpenAI's Responses API: items that are messages, calls of functions, or their results."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..chat.calls import ToolCall, find_call, make_call
from ..chat.messages import Fetch, Message, TextPart, parse_messages
from ..errors import PromptError
from .errors import refuse

CALL, RESULT = "function_call", "function_call_output"
KINDS = (None, "message", CALL, RESULT)
UNHEARD = {"id", "status", "phase", "annotations", "logprobs"}  # of answers sent back; nothing depends on them
HEARD = {CALL: {"type", "call_id", "name", "arguments"}, RESULT: {"type", "call_id", "output"}}


def read_input(value: Any, fetch: Fetch | None) -> list[Message]:
    """Return the messages of an input, calls beside what the assistant said before them. Raises PromptError and
    ApiError, which name the item."""
    if isinstance(value, str):
        return [Message("user", (TextPart(value, "input"),))]
    items: list[Any] = list(value) if isinstance(value, list) else value
    calls: list[ToolCall] = []
    for i, item in enumerate(items if isinstance(value, list) else ()):
        items[i] = _as_message(item, f"input[{i}]", calls)
    try:
        messages = parse_messages(without_unheard(items), "input", allow_objects=False, fetch=fetch)
    except PromptError as error:
        raise _in_result(error, value) from None
    if messages[-1].calls:
        where = f"input[{len(messages) - 1}]"
        raise refuse(where, f"{where}: expected items of type {RESULT} with the results next")
    return _joined(messages)


def _as_message(item: Any, where: str, calls: list[ToolCall]) -> Any:
    """Return an item as a message of a chat; `calls` are those of the items before it, to which it may add one."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == CALL:
        id, name, arguments = (item.get(key) for key in ("call_id", "name", "arguments"))
        calls.append(make_call(id, name, arguments, f"{where}.call_id", where))
        return Message("assistant", (), calls=(calls[-1],))
    if kind == RESULT:
        find_call(item.get("call_id"), calls, f"{where}.call_id")
        return {"role": "tool", "tool_call_id": item["call_id"], "content": item.get("output")}
    if kind not in KINDS:
        expected = ", ".join(repr(one) for one in KINDS[1:])
        where = f"{where}.type"
        raise refuse(where, f"{where}: {kind!r} is not supported, expected one of {expected}", "unsupported_value")
    return item


def _in_result(error: PromptError, value: Any) -> PromptError:
    """Name the place of an error in a result as the client wrote it."""
    for i, item in enumerate(value if isinstance(value, list) else ()):
        start = f"input[{i}].content"
        if error.where.startswith(start) and isinstance(item, Mapping) and item.get("type") == RESULT:
            where = f"input[{i}].output" + error.where.removeprefix(start)
            return PromptError(where, error.field, error.problem, code=error.code)
    return error


def _joined(messages: list[Message]) -> list[Message]:
    """Join calls that follow one another, or a message of the assistant, to one message."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last is not None and last.role == "assistant" and message.calls and not message.parts:
            joined[-1] = replace(last, calls=(*last.calls, *message.calls))
        else:
            joined.append(message)
    return joined


def without_unheard(value: Any) -> Any:
    """Return an input without the fields of earlier answers that nothing depends on."""
    if isinstance(value, list):
        return [without_unheard(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    content = {"content": without_unheard(value["content"])} if "content" in value else {}
    heard = HEARD.get(value.get("type", ""), set()) if isinstance(value.get("type"), str) else set()
    return {key: kept for key, kept in value.items() if key not in UNHEARD | heard} | content
