"""Builds /openapi.json, the description of the server, from the types that requests are checked with."""

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .nitro import LoadRequest
from .page import FILES
from .responses import InputRequest, ResponsesRequest
from .schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    LookRequest,
    PromptTokensRequest,
    TemplateRequest,
    TokenizeRequest,
)

REQUESTS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    InputRequest,
    LookRequest,
    TokenizeRequest,
    PromptTokensRequest,
    DetokenizeRequest,
    TemplateRequest,
    LoadRequest,
)
CHAT_PATHS = (
    "/v1/chat/completions",
    "/chat/completions",
    "/v1/openai/chat/completions",
    "/v1/inference/chat/completions",
    "/inferences/llamacpp/chat_completion",
)
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The JSON path of the wrong value."},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
STATUS_DESCRIPTIONS = {
    400: "The request is invalid; `param` is the JSON path of the wrong value.",
    401: "The API key is missing or wrong.",
    403: "The request comes from a web page of another origin, names a host that the server does not answer to, or "
    "names a file outside the allowed folders, or asks for a record that the operator does not allow.",
    404: "There is no such model.",
    408: "The body took too long to arrive.",
    409: "The model is already loaded, or none is loaded to unload.",
    413: "The body is too large.",
    415: "The content type is not JSON, or the content encoding is not supported.",
    429: "The server is busy; `retry-after` says when to try again.",
    500: "The model produced NaN or infinity, or the server has a bug.",
    503: "The server is shutting down or loading a model, or the model's thread has died.",
}
BODY_ERRORS = (400, 401, 403, 408, 413, 415, 429, 500, 503)


BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


@cache
def description() -> dict[str, Any]:
    """Return the description as an OpenAPI 3.1 document."""
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in REQUESTS], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "llava_ref", "version": version("llava-ref")},
        "paths": _paths(),
        "components": {
            "schemas": {**_with_bounds(schemas["$defs"]), "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _with_bounds(node: Any) -> Any:
    """Rename the bounds that pydantic leaves in Python's words, behind a type with a validator, to JSON Schema's."""
    if isinstance(node, list):
        return [_with_bounds(item) for item in node]
    if not isinstance(node, dict):
        return node
    names = BOUNDS if node.get("type") in ("integer", "number") else {}
    return {names.get(key, key): _with_bounds(value) for key, value in node.items()}


def _paths() -> dict[str, Any]:
    chat = {"post": _post_operation("ChatRequest", "Answer a conversation", "chat.completion", stream=True)}
    completion = {"post": _post_operation("CompletionRequest", "Continue a raw prompt", "text_completion", stream=True)}
    response = _post_operation(
        "ResponsesRequest", "Answer a conversation, as OpenAI's Responses API", "response", stream=True
    )
    count = "Count the tokens of a conversation, pictures included"
    attention = "Return the picture that the model saw and the attention of each token of an answer"
    models, model = {"get": _get_operation("List the loaded model", "list")}, {"get": _model_operation()}
    health = {"get": _operation("Check that the server answers", _json_response(), 403, 503, public=True)}
    metrics = _operation("Return the counters in Prometheus' text format", _text_response("text/plain"), 401, 403, 503)
    paths: dict[str, Any] = dict.fromkeys(CHAT_PATHS, chat)
    return paths | {
        "/v1/completions": completion,
        "/completions": completion,
        "/v1/responses": {"post": response},
        "/v1/responses/input_tokens": {"post": _post_operation("InputRequest", count, "response.input_tokens")},
        "/v1/look": {"post": _post_operation("LookRequest", attention, "look")},
        "/v1/models": models,
        "/models": models,
        "/v1/models/{name}": model,
        "/models/{name}": model,
        "/tokenize": {"post": _tokenize_operation()},
        "/detokenize": {"post": _post_operation("DetokenizeRequest", "Convert token ids to text")},
        "/apply-template": {
            "post": _post_operation("TemplateRequest", "Return the prompt that a conversation becomes")
        },
        "/health": health,
        "/healthz": health,
        "/metrics": {"get": metrics},
        "/tokenizer_info": {"get": _operation("Describe the tokenizer", _json_response(), 400, 401, 403, 503)},
        "/openapi.json": {"get": _get_operation("Return this description")},
        **{path: {"get": _file_operation(kind.partition(";")[0])} for path, (_, kind) in FILES.items()},
        "/docs/{name}": {"get": _page_operation()},
        "/page.json": {"get": _get_operation("Return what the web page shows before the first question", "page")},
        **_nitro_paths(),
    }


def _nitro_paths() -> dict[str, Any]:
    load = _post_operation("LoadRequest", "Load another model; the current one answers until it is ready")
    load["responses"] |= _error_responses(409)
    unload = _operation("Unload the model and free its memory", _json_response(), 401, 403, 409, 503)
    status = _get_operation("Say which model is loaded")
    return {
        "/inferences/llamacpp/loadmodel": {"post": load},
        "/inferences/llamacpp/unloadmodel": {"get": unload, "post": unload},
        "/inferences/llamacpp/modelstatus": {"get": status, "post": status},
    }


def _operation(summary: str, success: dict[str, Any], *errors: int, public: bool = False) -> dict[str, Any]:
    """Describe one method of a path. `errors`: its error statuses; `public`: it needs no API key."""
    security: dict[str, Any] = {"security": []} if public else {}
    return {"summary": summary, **security, "responses": {"200": success, **_error_responses(*errors)}}


def _post_operation(model: str, summary: str, kind: str | None = None, *, stream: bool = False) -> dict[str, Any]:
    success = _json_response(kind)
    if stream:
        success["content"] |= {"text/event-stream": {}}  # OpenAPI 3.1 cannot describe the chunks inside
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}}
    return _operation(summary, success, *BODY_ERRORS) | {"requestBody": body}


def _tokenize_operation() -> dict[str, Any]:
    operation = _post_operation("TokenizeRequest", "Convert text to token ids")
    other = {"$ref": "#/components/schemas/PromptTokensRequest"}
    for media in operation["requestBody"]["content"].values():
        media["schema"] = {"anyOf": [media["schema"], other]}
    return operation


def _get_operation(summary: str, kind: str | None = None) -> dict[str, Any]:
    return _operation(summary, _json_response(kind), 401, 403, 503)


def _file_operation(content_type: str) -> dict[str, Any]:
    return _operation("Return a file of the web page", _text_response(content_type), 403, public=True)


def _page_operation() -> dict[str, Any]:
    success = {
        "description": "The request succeeded.",
        "content": {"text/html": {}, "image/webp": {}, "image/svg+xml": {}},
    }
    return _named(_operation("Return a page of the documentation, or a picture", success, 403, public=True))


def _model_operation() -> dict[str, Any]:
    return _named(_get_operation("Describe one model", "model"))


def _named(operation: dict[str, Any]) -> dict[str, Any]:
    """Return an operation of a path with a name in it, which there may be no such thing of."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return operation | {"parameters": [name], "responses": operation["responses"] | _error_responses(404)}


def _json_response(kind: str | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if kind is not None:
        schema |= {"properties": {"object": {"const": kind}}, "required": ["object"]}
    return {"description": "The request succeeded.", "content": {"application/json": {"schema": schema}}}


def _text_response(content_type: str) -> dict[str, Any]:
    return {"description": "The request succeeded.", "content": {content_type: {"schema": {"type": "string"}}}}


def _error_responses(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": STATUS_DESCRIPTIONS[status], "content": content} for status in statuses}
