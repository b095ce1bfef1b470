"""Pictures with a question, and what the reference answers: what both pairs are then run on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..chat.chunks import ImageChunk, TextChunk
from ..generation.request import Request
from ..generation.sampler import Sampling
from ..generation.units import Part
from ..images import ImageSource
from ..images.decoding import DecodedImage
from ..model import Llava


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt and the reference's greedy answer.   S picture size, N rows of a picture, T positions fed."""

    label: str
    question: str
    answer: str
    seen: tuple[np.ndarray, ...]  # (S, S, 3) uint8 each: the pictures as squares
    pixels: tuple[np.ndarray, ...]  # (1, 3, S, S) float32 each: the same, normalised
    chunks: tuple[TextChunk | ImageChunk, ...]
    n_prompt: int
    """Positions of the prompt, pictures included."""
    next_ids: np.ndarray
    """(T,) what follows each position of prompt and answer: a token, or -1 where a picture does."""
    texts: tuple[str, ...]
    """The tokens that follow the scored positions, as text; bytes that are no text by themselves are escaped."""

    def parts(self, rows: Sequence[np.ndarray]) -> list[Part]:
        """The prompt, with these image rows (N, D), and the answer but for its last token, which nothing follows."""
        answer = self.next_ids[self.n_prompt - 1 : -1].tolist()
        prompt = [chunk.token_ids if isinstance(chunk, TextChunk) else rows[chunk.index] for chunk in self.chunks]
        return [*prompt, answer]

    @property
    def scored(self) -> np.ndarray:
        """(P,) the positions that a token follows."""
        return np.flatnonzero(self.next_ids >= 0)

    @property
    def in_answer(self) -> np.ndarray:
        """(P,) bool: whether the token that follows is the answer's."""
        return self.scored >= self.n_prompt - 1


def ask(reference: Llava, label: str, question: str, request: Request, max_tokens: int) -> Case:
    """Asks the reference, greedily, for at most `max_tokens`. PromptError if there is no room for an answer."""
    reply = reference.answer(request, Sampling(), max_tokens=max_tokens).finish()
    ids = request.token_ids
    following = np.array([*ids[1:], *reply.token_ids], np.int64)
    tokens = [reference.tokenizer.token_bytes(token) for token in following.tolist() if token >= 0]
    texts = tuple(token.decode("utf-8", "backslashreplace") for token in tokens)
    pictures = _pictures(reference, request.images)
    return Case(label, question, reply.text.strip(), *pictures, request.chunks, len(ids), following, texts)


def look(reference: Llava, label: str, image: ImageSource) -> Case:
    """A picture alone, for an mmproj file without a text model: nothing is asked. ImageError."""
    return Case(label, "", "", *_pictures(reference, [reference.decode_image(image)]), (), 0, np.zeros(0, np.int64), ())


Arrays = tuple[np.ndarray, ...]


def _pictures(reference: Llava, images: Sequence[DecodedImage]) -> tuple[Arrays, Arrays]:
    """`seen` and `pixels` of a case."""
    prepared = [reference.preprocess(image) for image in images]
    return tuple(p.seen for p in prepared), tuple(p.pixels for p in prepared)
