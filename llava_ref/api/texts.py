"""Answers the requests that need no forward pass: tokenize, detokenize, and the description of the loaded model."""

from collections.abc import Sequence
from typing import Any

from ..model import Llava
from .body import parse_json
from .errors import library_errors
from .models import LoadedModel
from .schema import DetokenizeRequest, TokenizeRequest, parse


def tokenize(body: bytearray, model: Llava, strict: bool) -> dict[str, Any]:
    """Return `{"tokens": [...]}` as llama-server does: ids, or with `with_pieces` objects of id and piece.

    Raises ApiError."""
    raw = parse_json(body)
    params, warnings = parse(TokenizeRequest, raw, strict=strict)
    with library_errors(raw, "content"):
        ids = model.tokenizer.encode(
            params.content, special=params.parse_special is not False, bos=bool(params.add_special)
        )
    pieces = [{"id": i, "piece": _piece(model.tokenizer.token_bytes(i))} for i in ids] if params.with_pieces else ids
    return {"tokens": pieces} | warnings_field(warnings)


def _piece(data: bytes) -> str | list[int]:
    """Return a token's text, or its bytes if they are not valid UTF-8 on their own."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def detokenize(body: bytearray, model: Llava, strict: bool) -> dict[str, Any]:
    """Return `{"content": text}`, with control tokens as text. Raises ApiError."""
    raw = parse_json(body)
    params, warnings = parse(DetokenizeRequest, raw, strict=strict)
    with library_errors(raw, "tokens"):
        return {"content": model.tokenizer.decode(params.tokens, special=True)} | warnings_field(warnings)


def warnings_field(warnings: Sequence[str]) -> dict[str, Any]:
    """Return the response field `warnings`, or nothing if there are none."""
    return {"warnings": list(warnings)} if warnings else {}


def model_card(loaded: LoadedModel) -> dict[str, Any]:
    """Return OpenAI's model object, with llama-server's extra field `meta`."""
    model = loaded.model
    meta = {
        "n_vocab": model.tokenizer.n_vocab,
        "n_ctx": model.n_context,
        "tokens_per_image": model.tokens_per_image,
        **model.settings,
    }
    card = {"id": loaded.name, "object": "model", "created": loaded.created, "owned_by": "llava_ref"}
    return card | {"meta": meta}


def model_list(loaded: LoadedModel | None) -> dict[str, Any]:
    """Return OpenAI's list of models; `models` says what they can do, as llama-server b11739 does."""
    shown = [] if loaded is None else [loaded]
    return {"object": "list", "data": [model_card(one) for one in shown], "models": [_abilities(one) for one in shown]}


def _abilities(loaded: LoadedModel) -> dict[str, Any]:
    abilities = ["completion", *(["multimodal"] if loaded.model.has_tower else [])]
    return {"name": loaded.name, "model": loaded.name, "type": "model", "capabilities": abilities}
