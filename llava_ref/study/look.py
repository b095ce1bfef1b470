"""One given answer about a picture: what the model was shown, and where each token of the answer looked.

A tokens of the answer, G patches along a side of the picture.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import PromptError
from ..generation.request import Request, too_long
from ..images.fit import Preprocessed
from ..model import Llava
from ..tokenizer.tokenizer import Tokenizer
from .ablation import picture_grid
from .attention import attention_to_picture

LONGEST = 720
MAX_ANSWER = 1024
"""Tokens of an answer: bounds the numbers to MAX_ANSWER x G x G."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of an answer and the characters `start` to `end` that it adds to the answer's text.

    A character that takes several tokens is the last one's; the others add nothing."""

    token_id: int
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Look:
    rgb: np.ndarray  # (height, width, 3) uint8: the source as it was read, perhaps made smaller
    picture: Preprocessed
    pieces: tuple[Piece, ...]
    attention: np.ndarray  # (A, G, G) float32, mean over layers and heads


def answer_pieces(tokenizer: Tokenizer, text: str) -> tuple[Piece, ...]:
    """The tokens of an answer that stands behind a prompt, from its text.

    The text is tokenised by itself, for that is the inverse of how an answer's tokens become its text: SPM's space at
    the start, which the decoder drops, comes back. Taken from a rendering of the whole conversation, the answer would
    have what the template puts around it, and could merge with the prompt's last token; then neither would be the
    positions that the answer was given at. Of several ways to cut a text this is the tokenizer's own, which a model's
    answer mostly is."""
    decoder, pieces, at = tokenizer.stream(), [], 0
    for token in tokenizer.encode(text, special=False):
        shown = decoder.push(token)
        pieces.append(Piece(token, shown, at, at + len(shown)))
        at += len(shown)
    return tuple(pieces)


def check_answer(model: Llava, request: Request, pieces: tuple[Piece, ...], where: str) -> None:
    """PromptError for what `look` cannot do: no picture, an answer that is empty or too long, a full context."""
    if not request.images:
        raise PromptError("messages", "image", "there is none, so there is nothing that was looked at")
    if not 0 < len(pieces) <= MAX_ANSWER:
        raise PromptError(where, "answer", f"of {len(pieces)} tokens, expected 1 to {MAX_ANSWER}")
    positions = len(request.token_ids) + len(pieces) - 1  # nothing is predicted from the last one
    if positions > model.n_context:
        raise too_long(positions, model.n_context, "the answer counted")


def look(model: Llava, request: Request, pieces: tuple[Piece, ...]) -> Look:
    """Runs prompt and answer once more and reads the attention over the prompt's last picture."""
    last, grid = len(request.images) - 1, picture_grid(model)
    weights = attention_to_picture(model, request, [piece.token_id for piece in pieces], image=last)
    source = request.images[last]
    attention = weights.mean(0).reshape(-1, grid, grid)
    return Look(_smaller(source.rgb), model.preprocess(source), pieces, attention)


def _smaller(rgb: np.ndarray) -> np.ndarray:
    """At most LONGEST pixels a side."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((LONGEST, LONGEST))
    return np.asarray(picture)
