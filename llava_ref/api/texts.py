"""Answers the requests that need no forward pass: tokenize, detokenize, and the description of the loaded model."""

from collections.abc import Sequence
from typing import Any

from ..model import Llava
from .body import parse_json
from .errors import library_errors
from .models import LoadedModel
from .schema import DetokenizeRequest, PromptTokensRequest, TokenizeRequest, parse


def tokenize(body: bytearray, model: Llava, strict: bool) -> dict[str, Any]:
    """Return `{"tokens": [...]}` as llama-server does: ids, or with `with_pieces` objects of id and piece. A body with
    `prompt` is answered as vLLM does.

    Raises ApiError."""
    raw = parse_json(body)
    if isinstance(raw, dict) and "prompt" in raw and "content" not in raw:
        return _prompt_tokens(raw, model, strict)
    params, warnings = parse(TokenizeRequest, raw, strict=strict)
    with library_errors(raw, "content"):
        ids = model.tokenizer.encode(
            params.content, special=params.parse_special is not False, bos=bool(params.add_special)
        )
    pieces = [{"id": i, "piece": _piece(model.tokenizer.token_bytes(i))} for i in ids] if params.with_pieces else ids
    return {"tokens": pieces} | warnings_field(warnings)


def _prompt_tokens(raw: dict[str, Any], model: Llava, strict: bool) -> dict[str, Any]:
    """Return the ids of `prompt`, their number and the context length, in vLLM's names."""
    params, warnings = parse(PromptTokensRequest, raw, strict=strict)
    with library_errors(raw, "prompt"):
        ids = model.tokenizer.encode(params.prompt, special=True, bos=params.add_special_tokens is not False)
    return {"tokens": ids, "count": len(ids), "max_model_len": model.n_context} | warnings_field(warnings)


def _piece(data: bytes) -> str | list[int]:
    """Return a token's text, or its bytes if they are not valid UTF-8 on their own."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def detokenize(body: bytearray, model: Llava, strict: bool) -> dict[str, Any]:
    """Return the text, with control tokens as text: `content` to clients of llama-server, `prompt` to those of vLLM.

    Raises ApiError."""
    raw = parse_json(body)
    params, warnings = parse(DetokenizeRequest, raw, strict=strict)
    with library_errors(raw, "tokens"):
        text = model.tokenizer.decode(params.tokens, special=True)
    return {"content": text, "prompt": text} | warnings_field(warnings)


def tokenizer_info(model: Llava) -> dict[str, Any]:
    """Describe the tokenizer in vLLM's names. A token that the vocabulary lacks is None."""
    tokenizer, vocabulary = model.tokenizer, model.tokenizer.vocabulary
    return {
        "tokenizer_class": vocabulary.model,
        "bos_token": None if tokenizer.bos_id is None else tokenizer.piece(tokenizer.bos_id),
        "eos_token": None if tokenizer.eos_id is None else tokenizer.piece(tokenizer.eos_id),
        "add_bos_token": tokenizer.add_bos,
        "chat_template": model.template.source,
    }


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
