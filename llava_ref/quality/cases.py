"""Ask the reference about pictures; both pairs are then run on its prompts and answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..chat.chunks import ImageChunk, TextChunk
from ..generation.request import Request, placed
from ..generation.sampling import Sampling
from ..generation.units import Part
from ..images import ImageSource
from ..images.decoding import DecodedImage
from ..images.fit import Preprocessed
from ..model import Llava
from ..models.family import Span


@dataclass(frozen=True, slots=True)
class QualityCase:
    """Holds one prompt and the reference's greedy answer.

    N rows of a picture, T positions fed, P positions scored."""

    label: str
    question: str
    answer: str
    pictures: tuple[Preprocessed, ...]  # as the tower gets them
    chunks: tuple[TextChunk | ImageChunk, ...]
    spans: tuple[Span, ...]
    n_prompt: int
    """Positions of the prompt, pictures included."""
    next_ids: np.ndarray
    """(T,) the token after each position of prompt and answer, -1 if a picture follows."""
    texts: tuple[str, ...]
    """The tokens after the scored positions as text; bytes that are not valid UTF-8 on their own are escaped."""

    def parts(self, rows: Sequence[np.ndarray]) -> list[Part]:
        """Return the prompt with these image rows (N, D), then the answer without its last token, which is only
        predicted."""
        answer = self.next_ids[self.n_prompt - 1 : -1].tolist()
        return [*placed(self.chunks, rows, self.spans), answer]

    @property
    def scored(self) -> np.ndarray:
        """Return the positions (P,) that a token follows."""
        return np.flatnonzero(self.next_ids >= 0)

    @property
    def in_answer(self) -> np.ndarray:
        """Tell for each scored position (P,) whether the token after it belongs to the answer."""
        return self.scored >= self.n_prompt - 1


def ask(reference: Llava, label: str, question: str, request: Request, max_tokens: int) -> QualityCase:
    """Ask the reference for a greedy answer of at most `max_tokens`.

    Raises PromptError if the prompt fills the context."""
    reply = reference.answer(request, Sampling(), max_tokens=max_tokens).finish()
    ids = request.token_ids
    following = np.array([*ids[1:], *reply.token_ids], np.int64)
    tokens = [reference.tokenizer.token_bytes(token) for token in following.tolist() if token >= 0]
    texts = tuple(token.decode("utf-8", "backslashreplace") for token in tokens)
    pictures = _pictures(reference, request.images)
    return QualityCase(
        label, question, reply.text.strip(), pictures, request.chunks, request.spans, len(ids), following, texts
    )


def look(reference: Llava, label: str, image: ImageSource) -> QualityCase:
    """Make a case of a picture without a question, for an mmproj file without a text model. Raises ImageError."""
    return QualityCase(
        label, "", "", _pictures(reference, [reference.decode_image(image)]), (), (), 0, np.zeros(0, np.int64), ()
    )


def _pictures(reference: Llava, images: Sequence[DecodedImage]) -> tuple[Preprocessed, ...]:
    return tuple(reference.preprocess(image) for image in images)
