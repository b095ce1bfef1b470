"""Answers `POST /v1/look`: the picture that the model saw, and the attention of each token of a given answer to it."""

from contextlib import ExitStack
from typing import Any

from ..chat.messages import Fetch, Message, TextPart, parse_messages
from ..errors import PromptError
from ..generation.answer import Turn
from ..html import data_uri
from ..study.look import Look, answer_pieces, check_answer, look
from .body import parse_json
from .conversations import chat_request, message_warnings, reserve_pixels
from .errors import library_errors
from .limits import Allowance, Limits
from .models import LoadedModel
from .prepare import Prepared
from .schema import LookRequest, parse
from .texts import warnings_field
from .worker import Items


def prepare_look(
    body: bytearray, loaded: LoadedModel, limits: Limits, pixel_allowance: Allowance, fetch: Fetch | None, strict: bool
) -> Prepared:
    """Parse and check a look request. Raises ApiError."""
    raw = parse_json(body)
    params, warnings = parse(LookRequest, raw, strict=strict)
    warnings += message_warnings(params.messages, strict=strict)
    model = loaded.model
    with library_errors(raw, "messages"), ExitStack() as on_error:
        *messages, answer = parse_messages(params.messages, allow_objects=False, fetch=fetch)
        where = f"messages[{len(messages)}]"
        pieces = answer_pieces(model.tokenizer, _text(answer, where))
        if not messages:
            raise PromptError("messages", "length", "1, expected a question before the answer")
        pixels = reserve_pixels(messages, limits, pixel_allowance)
        on_error.callback(pixel_allowance.give_back, pixels)
        request = chat_request(loaded, messages)
        check_answer(model, request, pieces, where)
        which = params.which or len(request.images)
        if which > len(request.images):
            raise PromptError("which", str(which), f"the conversation has {len(request.images)} pictures")
        on_error.pop_all()

    def work() -> Items:
        yield Turn.PROMPT
        yield {**look_response(look(model, request, pieces, which - 1)), "which": which, **warnings_field(warnings)}

    return Prepared(model, False, work, (), pixels)


def _text(answer: Message, where: str) -> str:
    if answer.role != "assistant" or not all(isinstance(part, TextPart) for part in answer.parts):
        raise PromptError(where, "role", "expected the last message to be the assistant's answer, as text")
    return "".join(part.text for part in answer.parts if isinstance(part, TextPart))


def look_response(result: Look) -> dict[str, Any]:
    """Return the response object.

    `picture` is the source as it was decoded; a browser may show it rotated, because it applies EXIF orientation.
    `size` is the width and height of the picture as it was fitted, `grid` the rows and columns of `attention` over
    it, `affine` [scale x, scale y, shift x, shift y] from its pixels to those of the source, whose size is `source`;
    of several tiles all three are of the one that shows the whole picture."""
    picture, affine = result.picture, result.picture.affine
    return {
        "object": "look",
        "picture": data_uri(result.rgb),
        "seen": data_uri(picture.seen),
        "size": picture.whole.seen.shape[1::-1],
        "tiles": len(picture.tiles),
        "source": list(picture.source),
        "affine": [affine.scale_x, affine.scale_y, affine.shift_x, affine.shift_y],
        "grid": result.attention.shape[1:],
        "tokens": [{"text": piece.text, "start": piece.start, "end": piece.end} for piece in result.pieces],
        "attention": result.attention.astype(float).round(6).tolist(),
    }
