"""What needs no forward pass: tokens of a text, the text of tokens, and what a loaded model says about itself."""

from typing import Any

from ..model import Llava
from .body import parse_json
from .errors import library_errors
from .models import Loaded
from .schema import DetokenizeRequest, TokenizeRequest, parse


def tokenize(body: bytearray, model: Llava) -> dict[str, Any]:
    """llama-server's: `{"tokens": [...]}`, with `with_pieces` objects of id and piece. ApiError."""
    raw = parse_json(body)
    asked = parse(TokenizeRequest, raw)
    with library_errors(raw, "content"):
        ids = model.tokenizer.encode(
            asked.content, special=asked.parse_special is not False, bos=bool(asked.add_special)
        )
    if not asked.with_pieces:
        return {"tokens": ids}
    return {"tokens": [{"id": i, "piece": _piece(model.tokenizer.token_bytes(i))} for i in ids]}


def _piece(data: bytes) -> str | list[int]:
    """Bytes where they are no text by themselves."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def detokenize(body: bytearray, model: Llava) -> dict[str, Any]:
    """`{"content": text}`, control tokens as their own texts. ApiError."""
    raw = parse_json(body)
    asked = parse(DetokenizeRequest, raw)
    with library_errors(raw, "tokens"):
        return {"content": model.tokenizer.decode(asked.tokens, special=True)}


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
