"""JSON Schemas of messages, for /openapi.json. Messages are checked by `chat.messages`, which is stricter."""

from typing import Any

from pydantic import WithJsonSchema

from ..chat.calls import MAX_CALLS, NAME
from ..chat.messages import MAX_MESSAGES

_TEXT = {
    "type": "object",
    "properties": {"type": {"enum": ["text", "input_text", "output_text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_URL = {
    "type": "string",
    "description": "A data URI or base64 data, or an http or https URL if the server allows its host.",
}
_DETAIL = {
    "description": "Has no effect, because a model sees every picture at one size; a warning says so unless it is auto."
}
_IMAGE = {
    "type": "object",
    "properties": {
        "type": {"enum": ["image_url", "input_image", "image"]},
        "image_url": {
            "anyOf": [
                {"type": "object", "properties": {"url": _URL, "detail": _DETAIL}, "required": ["url"]},
                _URL,
            ]
        },
        "image": _URL,
        "url": _URL,
        "base64": _URL,
        "source": {"type": "object", "description": "Anthropic's form, with type, media_type, and data or url."},
        "detail": _DETAIL,
    },
    "required": ["type"],
}
_PARTS = {"type": "array", "items": {"anyOf": [_TEXT, _IMAGE]}}
_REQUEST_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user"]},
        "content": {"anyOf": [{"type": "string"}, _PARTS | {"minItems": 1}]},
    },
    "required": ["role", "content"],
}
_CALL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 1024},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": f"^{NAME.pattern}$"},
                "arguments": {"type": ["string", "object", "null"], "description": "A JSON object, as a string."},
            },
            "required": ["name"],
        },
    },
    "required": ["id", "function"],
}
_ANSWER_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"const": "assistant"},
        "content": {"anyOf": [{"type": "string"}, _PARTS, {"type": "null"}]},
        "tool_calls": {"anyOf": [{"type": "array", "items": _CALL, "maxItems": MAX_CALLS}, {"type": "null"}]},
    },
    "required": ["role"],
}
_RESULT_MESSAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "role": {"const": "tool"},
        "tool_call_id": {"type": "string", "description": "The id of a call of an earlier message."},
        "content": {"anyOf": [{"type": "string"}, _PARTS | {"minItems": 1}]},
    },
    "required": ["role", "tool_call_id", "content"],
}
MESSAGES: dict[str, Any] = {
    "type": "array",
    "items": {"anyOf": [_REQUEST_MESSAGE, _ANSWER_MESSAGE, _RESULT_MESSAGE]},
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "description": "The conversation; each message may mix texts and pictures in any order.",
}
ANSWERED_MESSAGES: dict[str, Any] = MESSAGES | {
    "minItems": 2,
    "description": "A conversation with at least one picture, which ends with the assistant's answer as text.",
}
_CALL_ITEM = {
    "type": "object",
    "properties": {
        "type": {"const": "function_call"},
        "call_id": _CALL["properties"]["id"],
        **_CALL["properties"]["function"]["properties"],
    },
    "required": ["type", "call_id", "name"],
}
_RESULT_ITEM = {
    "type": "object",
    "properties": {
        "type": {"const": "function_call_output"},
        "call_id": {"type": "string", "description": "The id of an earlier call."},
        "output": _RESULT_MESSAGE["properties"]["content"],
    },
    "required": ["type", "call_id", "output"],
}
INPUT: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        MESSAGES | {"items": {"anyOf": [*MESSAGES["items"]["anyOf"], _CALL_ITEM, _RESULT_ITEM]}},
    ],
    "description": "A text of the user, or messages, calls and their results, as OpenAI's Responses API has them.",
}
PROMPT_TEXT = WithJsonSchema(
    {"type": "string", "description": "A text prompt, in which the image slot `<image>` is refused."}
)
