"""Handles Nitro's requests: which model to load, and the prompts that go before each role's messages.

Source: documentation and code of Nitro v0.3.22. As documented, `user_prompt`, `ai_prompt` and `system_prompt` go before
the messages of their role, `pre_prompt` goes before everything, and the prompt ends with `ai_prompt`. Nitro's code
deviates: with a picture it omits `user_prompt`, and it moves system messages to the front. This is not copied.
"""

import json
from typing import Annotated, Any

from pydantic import Field

from ..chat.templates import ChatTemplate
from .body import parse_json
from .fields import Int
from .models import LoadedModel, Models
from .parameters import LOADS
from .schema import RequestBody, parse

Prefix = Annotated[str, Field(max_length=10_000)]
DEFAULTS = {"user_prompt": "USER: ", "ai_prompt": "ASSISTANT: ", "system_prompt": "ASSISTANT's RULE: "}
TEMPLATE = """{{%- set says = {{'user': {user_prompt}, 'assistant': {ai_prompt}, 'system': {system_prompt}}} -%}}
{{{{- {pre_prompt} -}}}}
{{%- for m in messages -%}}
{{{{- says[m['role']] -}}}}
{{%- if m['content'] is string -%}}{{{{- m['content'] -}}}}
{{%- else -%}}{{%- for part in m['content'] -%}}
{{{{- '<image>' if part['type'] == 'image' else part['text'] -}}}}
{{%- endfor -%}}{{%- endif -%}}
{{%- endfor -%}}
{{{{- says['assistant'] -}}}}"""


class LoadRequest(RequestBody):
    """The body of `POST /inferences/llamacpp/loadmodel`."""

    table = LOADS
    llama_model_path: Annotated[str, Field(min_length=1, max_length=4096, description="Path of the text model's file.")]
    mmproj: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="Path of the mmproj file; without it, the model reads text only."
    )
    ctx_len: Annotated[Int, Field(ge=2, le=2**31 - 1)] | None = Field(
        None, description="Context length in tokens, clamped to the model's own."
    )
    system_prompt: Prefix | None = Field(None, description="Text before each system message.")
    user_prompt: Prefix | None = Field(
        None, description="Text before each user message; an answer stops where it appears."
    )
    ai_prompt: Prefix | None = Field(None, description="Text before each answer.")
    pre_prompt: Prefix | None = Field(None, description="Text before the whole prompt.")


def parse_load(body: bytearray, strict: bool) -> tuple[LoadRequest, tuple[str, ...]]:
    """Parse a loadmodel request; returns it and the warnings. Raises ApiError."""
    return parse(LoadRequest, parse_json(body), strict=strict)


def load(models: Models, params: LoadRequest) -> LoadedModel:
    """Load the requested pair. Raises ApiError; the current model then stays."""
    stop = (params.user_prompt or "").strip()
    stops = (stop,) if stop else ()
    return models.change(params.llama_model_path, params.mmproj, params.ctx_len, template(params), stops)


def template(params: LoadRequest) -> ChatTemplate | None:
    """Return a template made of the given prompts, or None, for the file's own, if none is given."""
    given = {name: getattr(params, name) for name in (*DEFAULTS, "pre_prompt")}
    if all(prefix is None for prefix in given.values()):
        return None
    prefixes = DEFAULTS | {"pre_prompt": ""} | {name: prefix for name, prefix in given.items() if prefix is not None}
    source = TEMPLATE.format(**{name: jinja_literal(prefix) for name, prefix in prefixes.items()})
    return ChatTemplate("nitro", source, "the prompts that loadmodel was given")


def jinja_literal(text: str) -> str:
    """Return `text` as a string literal of jinja, with everything but ASCII letters, digits and spaces escaped."""
    plain = (c if c.isascii() and (c.isalnum() or c == " ") else _escape(c) for c in text)
    return "'" + "".join(plain) + "'"


def _escape(c: str) -> str:
    return f"\\U{ord(c):08x}"


def status(loaded: LoadedModel | None) -> dict[str, Any]:
    """Return Nitro's model status; its field `model_data` is a string that contains JSON."""
    if loaded is None:
        return {"model_loaded": False}
    model = loaded.model
    about = {
        "model": loaded.name,
        "n_ctx": model.n_context,
        "mmproj": None if loaded.pair[1] is None else loaded.pair[1].stem,
        "template": (loaded.prompts or model.template).name,
        **model.settings,
    }
    return {"model_loaded": True, "model_data": json.dumps(about)}
