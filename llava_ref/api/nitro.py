"""Nitro's requests: which model to load, and the prompts around what each side says.

Facts: Nitro v0.3.22, its documentation and source. `user_prompt`, `ai_prompt` and `system_prompt` go before what each
says, `pre_prompt` before everything, and the prompt ends with `ai_prompt`: as documented. (Its code left out
`user_prompt` where there was a picture, and put system messages first; that is not copied.)
"""

import json
from typing import Annotated, Any

from pydantic import Field

from ..chat.templates import ChatTemplate
from .body import parse_json
from .models import Loaded, Models
from .parameters import LOADS
from .schema import Int, Strict, parse

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


class LoadRequest(Strict):
    """`POST /inferences/llamacpp/loadmodel`."""

    table = LOADS
    llama_model_path: Annotated[str, Field(min_length=1, max_length=4096)]
    mmproj: Annotated[str, Field(max_length=4096)] | None = Field(None, description="Without it: text only.")
    ctx_len: Annotated[Int, Field(ge=2, le=2**31 - 1)] | None = Field(
        None, description="Positions of prompt and answer; never more than the model has."
    )
    system_prompt: Prefix | None = Field(None, description="Before a system message.")
    user_prompt: Prefix | None = Field(None, description="Before a user's message; an answer ends before it, too.")
    ai_prompt: Prefix | None = Field(None, description="Before an answer.")
    pre_prompt: Prefix | None = Field(None, description="Before everything.")


def parse_load(body: bytearray, strict: bool) -> tuple[LoadRequest, tuple[str, ...]]:
    """Return what is asked for, and what of it has no effect. ApiError."""
    return parse(LoadRequest, parse_json(body), strict=strict)


def load(models: Models, asked: LoadRequest) -> Loaded:
    """ApiError; the model that is loaded then stays."""
    stop = (asked.user_prompt or "").strip()
    stops = (stop,) if stop else ()
    return models.change(asked.llama_model_path, asked.mmproj, asked.ctx_len, template(asked), stops)


def template(asked: LoadRequest) -> ChatTemplate | None:
    """The documented prompts as a template; None if none is given: then the file's own is used."""
    given = {name: getattr(asked, name) for name in (*DEFAULTS, "pre_prompt")}
    if all(prefix is None for prefix in given.values()):
        return None
    known = DEFAULTS | {"pre_prompt": ""} | {name: prefix for name, prefix in given.items() if prefix is not None}
    source = TEMPLATE.format(**{name: literal(prefix) for name, prefix in known.items()})
    return ChatTemplate("nitro", source, "the prompts that loadmodel was given")


def literal(text: str) -> str:
    """A string of jinja's language that is `text`: everything but plain letters and spaces is escaped."""
    plain = (c if c.isascii() and (c.isalnum() or c == " ") else _escape(c) for c in text)
    return "'" + "".join(plain) + "'"


def _escape(c: str) -> str:
    return f"\\U{ord(c):08x}"


def status(loaded: Loaded | None) -> dict[str, Any]:
    """`model_data` is JSON inside a string, as Nitro has it."""
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
