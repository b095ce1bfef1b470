"""The description of the server, from the types that requests are checked with."""

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .nitro import LoadRequest
from .page import FILES
from .schema import ChatRequest, CompletionRequest, DetokenizeRequest, LookRequest, TokenizeRequest

REQUESTS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    LookRequest,
    TokenizeRequest,
    DetokenizeRequest,
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
                "param": {"type": ["string", "null"], "description": "The JSON path of what is wrong."},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
MEANINGS = {
    400: "The request has to be changed; `param` says where.",
    401: "The API key is missing or wrong.",
    403: "A web page of another origin, a host that is not served, or a file that is not in an allowed folder.",
    404: "No such model.",
    408: "The body took too long.",
    409: "Already so.",
    413: "The body is too large.",
    415: "The content type is not JSON, or the content encoding is not known.",
    429: "The queue is full; `retry-after` says when to come back.",
    500: "The model gave NaN or infinity, or a bug.",
    503: "Shutting down, loading, or the model's thread has died.",
}
BODY_ERRORS = (400, 401, 403, 408, 413, 415, 429, 500, 503)


@cache
def description() -> dict[str, Any]:
    """OpenAPI 3.1."""
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in REQUESTS], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "llava_ref", "version": version("llava-ref")},
        "paths": _paths(),
        "components": {
            "schemas": {**schemas["$defs"], "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _paths() -> dict[str, Any]:
    chat = {"post": _posted("ChatRequest", "An answer to a conversation", "chat.completion", stream=True)}
    paths: dict[str, Any] = dict.fromkeys(CHAT_PATHS, chat)
    nitro = "/inferences/llamacpp"
    loaded = _posted("LoadRequest", "Load another pair; the old one answers until it is ready")
    loaded["responses"] |= _errors(409)
    unload = {"summary": "Give the model's memory back", "responses": {"200": _json(), **_errors(401, 403, 409, 503)}}
    status = {"summary": "What is loaded", "responses": {"200": _json(), **_errors(401, 403, 503)}}
    completion = _posted("CompletionRequest", "Text after a prompt", "text_completion", stream=True)
    models, model = {"get": _got("The model that is loaded", "list")}, {"get": _named_model()}
    return paths | {
        "/v1/completions": {"post": completion},
        "/completions": {"post": completion},
        "/v1/look": {
            "post": _posted("LookRequest", "What the model was shown, and where each token of an answer looked", "look")
        },
        "/v1/models": models,
        "/models": models,
        "/v1/models/{name}": model,
        "/models/{name}": model,
        "/tokenize": {"post": _posted("TokenizeRequest", "Text to token ids")},
        "/detokenize": {"post": _posted("DetokenizeRequest", "Token ids to text")},
        "/health": {
            "get": {"summary": "Whether it answers", "security": [], "responses": {"200": _json(), **_errors(403, 503)}}
        },
        "/healthz": {
            "get": {"summary": "The same", "security": [], "responses": {"200": _json(), **_errors(403, 503)}}
        },
        "/metrics": {
            "get": {"summary": "Counters", "responses": {"200": _text("text/plain"), **_errors(401, 403, 503)}}
        },
        "/openapi.json": {"get": _got("This page")},
        **{
            path: {"get": _file("Part of the page for people", kind.partition(";")[0])}
            for path, (_, kind) in FILES.items()
        },
        "/page.json": {"get": _got("What it shows before anything is asked", "page")},
        f"{nitro}/loadmodel": {"post": loaded},
        f"{nitro}/unloadmodel": {"get": unload, "post": unload},
        f"{nitro}/modelstatus": {"get": status, "post": status},
    }


def _posted(model: str, summary: str, kind: str | None = None, *, stream: bool = False) -> dict[str, Any]:
    good = _json(kind)
    if stream:
        good["content"] |= {"text/event-stream": {}}  # OpenAPI 3.1 cannot say what an event holds: a chunk
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}}
    return {"summary": summary, "requestBody": body, "responses": {"200": good, **_errors(*BODY_ERRORS)}}


def _got(summary: str, kind: str | None = None) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": _json(kind), **_errors(401, 403, 503)}}


def _file(summary: str, content_type: str) -> dict[str, Any]:
    return {"summary": summary, "security": [], "responses": {"200": _text(content_type), **_errors(403)}}


def _named_model() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    about = _got("One model", "model")
    return about | {"parameters": [name], "responses": about["responses"] | _errors(404)}


def _json(kind: str | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if kind is not None:
        schema |= {"properties": {"object": {"const": kind}}, "required": ["object"]}
    return {"description": "Done.", "content": {"application/json": {"schema": schema}}}


def _text(content_type: str) -> dict[str, Any]:
    return {"description": "Done.", "content": {content_type: {"schema": {"type": "string"}}}}


def _errors(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": MEANINGS[status], "content": content} for status in statuses}
