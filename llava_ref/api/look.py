"""`POST /v1/look`: a conversation that ends with an answer -> what was seen, and where each of its tokens looked."""

from contextlib import ExitStack
from typing import Any

from ..chat.messages import Fetch, Message, TextPart, parse_messages
from ..errors import PromptError
from ..html import data_uri
from ..study.look import Look, answer_pieces, check_answer, look
from .body import parse_json
from .errors import library_errors
from .limits import Budget, Limits
from .models import Loaded
from .prepare import Items, Prepared, chat_request, hold, notes
from .schema import LookRequest, parse
from .texts import said


def prepare_look(
    body: bytearray, loaded: Loaded, limits: Limits, held: Budget, fetch: Fetch | None, strict: bool
) -> Prepared:
    """ApiError."""
    raw = parse_json(body)
    asked, warnings = parse(LookRequest, raw, strict=strict)
    warnings += notes(asked.messages, strict=strict)
    model = loaded.model
    with library_errors(raw, "messages"), ExitStack() as refused:
        *messages, answer = parse_messages(asked.messages, allow_objects=False, fetch=fetch)
        where = f"messages[{len(messages)}]"
        pieces = answer_pieces(model.tokenizer, _text(answer, where))
        if not messages:
            raise PromptError("messages", "length", "1, expected a question before the answer")
        pixels = hold(messages, limits, held)
        refused.callback(held.give_back, pixels)
        request = chat_request(loaded, messages)
        check_answer(model, request, pieces, where)
        refused.pop_all()

    def work() -> Items:
        yield look_object(look(model, request, pieces)) | said(warnings)

    return Prepared(model, False, work, (), pixels)


def _text(answer: Message, where: str) -> str:
    if answer.role != "assistant" or not all(isinstance(part, TextPart) for part in answer.parts):
        raise PromptError(where, "role", "expected the last message to be the assistant's answer, as text")
    return "".join(part.text for part in answer.parts if isinstance(part, TextPart))


def look_object(found: Look) -> dict[str, Any]:
    """`picture` is the source as it was read, which is not always as a browser shows it: EXIF may turn it there.

    `affine`: scale x, scale y, shift x, shift y, from the squared picture's pixels to the source's, of which
    `source` is the size."""
    picture, affine = found.picture, found.picture.affine
    return {
        "object": "look",
        "picture": data_uri(found.rgb),
        "seen": data_uri(picture.seen),
        "size": picture.seen.shape[0],
        "source": list(picture.source),
        "affine": [affine.scale_x, affine.scale_y, affine.shift_x, affine.shift_y],
        "grid": found.attention.shape[1],
        "tokens": [{"text": piece.text, "start": piece.start, "end": piece.end} for piece in found.pieces],
        "attention": found.attention.astype(float).round(6).tolist(),
    }
