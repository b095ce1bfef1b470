"""JSON Schema of conversations, for the OpenAPI page. What they are checked by is `messages`, which is stricter."""

from typing import Any

from pydantic import WithJsonSchema

from ..chat.messages import MAX_MESSAGES

_TEXT = {
    "type": "object",
    "properties": {"type": {"enum": ["text", "input_text", "output_text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_URL = {"type": "string", "description": "A data URI, or base64; an http or https URL if the server allows its host."}
_DETAIL = {
    "description": "Has no effect, and a warning says so unless it is auto: a model sees every picture at one size."
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
        "source": {"type": "object", "description": "Anthropic's: type, media_type, data or url."},
        "detail": _DETAIL,
    },
    "required": ["type"],
}
_PARTS = {"type": "array", "items": {"anyOf": [_TEXT, _IMAGE]}}
_ASKING = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user"]},
        "content": {"anyOf": [{"type": "string"}, _PARTS | {"minItems": 1}]},
    },
    "required": ["role", "content"],
}
_ANSWERING = {
    "type": "object",
    "properties": {
        "role": {"const": "assistant"},
        "content": {"anyOf": [{"type": "string"}, _PARTS, {"type": "null"}]},
    },
    "required": ["role"],
}
MESSAGES: dict[str, Any] = {
    "type": "array",
    "items": {"anyOf": [_ASKING, _ANSWERING]},
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "description": "The conversation. Pictures may stand anywhere among the texts of any turn.",
}
LOOKED_AT: dict[str, Any] = MESSAGES | {
    "minItems": 2,
    "description": "The conversation, the last message being the assistant's answer, as text. At least one picture.",
}
SLOT = WithJsonSchema({"type": "string", "description": "Text; `<image>` in it would be a picture, and is refused."})
