"""Answers that must be JSON, and calls of functions."""

import json
from typing import Any

from .case import REFERENCE, DemandGroup, Untold, choice, need, refused, text_of
from .media import ASK, image
from .target import HttpAnswer, Target

STRUCTURED = DemandGroup("json")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "report", "description": "Reports a shape.", "parameters": SCHEMA}}


def as_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "shape", "strict": True, "schema": schema}}


def parsed(text: str, answer: HttpAnswer) -> Any:
    """Return the JSON of an answer that was not cut."""
    if choice(answer).get("finish_reason") == "length":
        raise Untold("the answer reached max_tokens")
    try:
        return json.loads(text)
    except ValueError:
        need(False, f"not JSON: {text[:200]!r}")


def need_shape(value: Any) -> None:
    sound = isinstance(value, dict) and set(value) == {"colour", "count"} and value["colour"] in ("red", "blue")
    need(sound and type(value["count"]) is int, f"{value}")


@STRUCTURED.demand("must", "json_object makes an answer one JSON object.", f"{REFERENCE}, response_format")
def an_object(s: Target) -> None:
    asked = [image(), {"type": "text", "text": 'Describe the picture in JSON, as {"colour": ...}.'}]
    answer = s.ask(asked, response_format={"type": "json_object"}, max_tokens=120)
    need(isinstance(parsed(text_of(answer), answer), dict), answer.said())


@STRUCTURED.demand("must", "A strict json_schema is kept.", f"{REFERENCE}, response_format.json_schema")
def a_schema(s: Target) -> None:
    answer = s.ask([image(), ASK], response_format=as_format(SCHEMA), max_tokens=120)
    need_shape(parsed(text_of(answer), answer))


@STRUCTURED.demand("should", "A schema that means nothing is refused.", f"{REFERENCE}, response_format.json_schema")
def no_schema(s: Target) -> None:
    refused(s.ask([ASK], response_format=as_format({"type": "colour"})))


@STRUCTURED.demand(
    "should", "A named function is called with arguments of its schema.", f"{REFERENCE}, tools, tool_choice"
)
def a_function(s: Target) -> None:
    chosen = {"type": "function", "function": {"name": "report"}}
    answer = s.ask([image(), ASK], tools=[TOOL], tool_choice=chosen, max_tokens=120)
    need(answer.status == 200, answer.said())
    calls = (choice(answer).get("message") or {}).get("tool_calls") or []
    need(len(calls) > 0 and calls[0].get("type") == "function" and bool(calls[0].get("id")), answer.said())
    need(calls[0]["function"].get("name") == "report", answer.said())
    need_shape(parsed(calls[0]["function"].get("arguments") or "", answer))
