"""What needs no forward pass: tokens of a text, the text of tokens, and what a loaded model says about itself."""

from collections.abc import Sequence
from typing import Any

from ..model import Llava
from .body import parse_json
from .errors import library_errors
from .models import Loaded
from .schema import DetokenizeRequest, TokenizeRequest, parse


def tokenize(body: bytearray, model: Llava, strict: bool) -> dict[str, Any]:
    """llama-server's: `{"tokens": [...]}`, with `with_pieces` objects of id and piece. ApiError."""
    raw = parse_json(body)
    asked, warnings = parse(TokenizeRequest, raw, strict=strict)
    with library_errors(raw, "content"):
        ids = model.tokenizer.encode(
            asked.content, special=asked.parse_special is not False, bos=bool(asked.add_special)
        )
    pieces = [{"id": i, "piece": _piece(model.tokenizer.token_bytes(i))} for i in ids] if asked.with_pieces else ids
    return {"tokens": pieces} | said(warnings)


def _piece(data: bytes) -> str | list[int]:
    """Bytes where they are no text by themselves."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def detokenize(body: bytearray, model: Llava, strict: bool) -> dict[str, Any]:
    """`{"content": text}`, control tokens as their own texts. ApiError."""
    raw = parse_json(body)
    asked, warnings = parse(DetokenizeRequest, raw, strict=strict)
    with library_errors(raw, "tokens"):
        return {"content": model.tokenizer.decode(asked.tokens, special=True)} | said(warnings)


def said(warnings: Sequence[str]) -> dict[str, Any]:
    """The field of an answer that says what had no effect; none where nothing had."""
    return {"warnings": list(warnings)} if warnings else {}


def model_card(loaded: Loaded) -> dict[str, Any]:
    """OpenAI's model object, and what llama-server adds under `meta`."""
    model = loaded.model
    meta = {
        "n_vocab": model.tokenizer.n_vocab,
        "n_ctx": model.n_context,
        "tokens_per_image": model.tokens_per_image,
        **model.settings,
    }
    card = {"id": loaded.name, "object": "model", "created": loaded.created, "owned_by": "llava_ref"}
    return card | {"meta": meta}
