"""Show what the model saw of a picture, and where each token of a given answer looked.

A tokens of the answer, G cells along a side of the picture: patches, of LLaVA-1.6 half as large.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import PromptError
from ..generation.request import Request, too_long
from ..images.fit import Preprocessed
from ..model import Llava
from ..tokenizer.tokenizer import Tokenizer
from .attention import attention_to_picture
from .overlay import over_whole

LONGEST = 720
"""Pixels along the longer side of the picture that is returned, at most."""
MAX_ANSWER = 1024
"""Tokens of an answer, at most: the result holds up to MAX_ANSWER x G x G numbers."""


@dataclass(frozen=True, slots=True)
class AnswerToken:
    """Holds a token of an answer and the characters `start` to `end` that it adds to the answer's text.

    A character that takes several tokens belongs to the last one; the others add nothing."""

    token_id: int
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Look:
    """Holds a picture, an answer about it, and the attention of the answer's tokens to the picture."""

    rgb: np.ndarray  # (height, width, 3) uint8: the source as decoded, at most LONGEST pixels a side
    picture: Preprocessed
    pieces: tuple[AnswerToken, ...]
    attention: np.ndarray  # (A, G, G) float32, mean over layers and heads


def answer_pieces(tokenizer: Tokenizer, text: str) -> tuple[AnswerToken, ...]:
    """Tokenise the text of an answer as it stood behind its prompt.

    The text is tokenised by itself, which is the inverse of how an answer's tokens become its text: SPM's space at the
    start, which the decoder drops, comes back. In a rendering of the whole conversation the answer would carry the
    template's text around it and could merge with the prompt's last token; its positions would then not be those at
    which it was generated. A text can be cut into tokens in several ways; this is the tokenizer's own, which a model's
    answer mostly uses."""
    decoder, pieces, at = tokenizer.stream(), [], 0
    for token in tokenizer.encode(text, special=False):
        shown = decoder.push(token)
        pieces.append(AnswerToken(token, shown, at, at + len(shown)))
        at += len(shown)
    return tuple(pieces)


def check_answer(model: Llava, request: Request, pieces: tuple[AnswerToken, ...], where: str) -> None:
    """Check that `look` can run.

    Raises PromptError without a picture, for an answer that is empty or too long, and if the context is too short."""
    if not request.images:
        raise PromptError("messages", "image", "there is none, so there is nothing that was looked at")
    if not 0 < len(pieces) <= MAX_ANSWER:
        raise PromptError(where, "answer", f"of {len(pieces)} tokens, expected 1 to {MAX_ANSWER}")
    positions = len(request.token_ids) + len(pieces) - 1  # the last token is predicted, not fed
    if positions > model.n_context:
        raise too_long(positions, model.n_context, "the answer counted")


def look(model: Llava, request: Request, pieces: tuple[AnswerToken, ...], image: int) -> Look:
    """Run prompt and answer once more and read the attention to the prompt's picture number `image`, from 0."""
    weights = attention_to_picture(model, request, [piece.token_id for piece in pieces], image=image)
    source = request.images[image]
    picture = model.preprocess(source)
    return Look(_smaller(source.rgb), picture, pieces, over_whole(weights.mean(0), picture))


def _smaller(rgb: np.ndarray) -> np.ndarray:
    """Shrink a picture to at most LONGEST pixels a side."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((LONGEST, LONGEST))
    return np.asarray(picture)
