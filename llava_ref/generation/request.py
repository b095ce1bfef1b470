"""A prompt ready to run, and the answer to it with its figures.   n rows of a picture, D decoder width."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..chat.chunks import ImageChunk, Prompt, TextChunk
from ..errors import ParameterError, PromptError
from ..html import table
from ..images.decoding import DecodedImage
from ..models.family import Span
from ..models.looking import PictureStates
from .scores import Score
from .units import Part, Picture, PictureRows

SHOWN = 200  # characters of an answer in a line about it
SECONDS = ("preprocess_s", "encode_s", "prefill_s", "decode_s")
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer."""

    token_id: int
    text: str
    """The text that can be shown now. Empty while a character is incomplete or a stop string may be beginning."""
    finish_reason: FinishReason | None
    """On the last step only: "stop" for an end-of-generation token or a stop string, "length" for a limit."""
    seconds: float
    """Time this token took; the first one's is the prompt's. A step shared with other answers counts in full."""
    score: Score | None = None
    """Its log-probability, where `Sampling.top_logprobs` asks for it."""

    def __repr__(self) -> str:
        end = f", {self.finish_reason}" if self.finish_reason else ""
        return f"<Step {self.token_id} {self.text!r}{end}, {1000 * self.seconds:.1f} ms>"


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt ready to run: its chunks, and the pictures they name with their places in the sequence."""

    prompt: Prompt
    chunks: tuple[TextChunk | ImageChunk, ...]
    images: tuple[DecodedImage, ...] = ()
    spans: tuple[Span, ...] = ()
    """One for each picture."""
    decode_s: float = 0.0
    """Seconds spent on reading the pictures."""
    continues: bool = False
    """The answer goes on in the middle of a text, so that a space it begins with is shown."""
    notes: tuple[str, ...] = ()
    """Settings that had no effect, one sentence each."""

    def __repr__(self) -> str:
        return f"<Request of {len(self.token_ids)} positions, {counted(len(self.images))}: {self.prompt.shown!r}>"

    @property
    def token_ids(self) -> list[int]:
        """Return one number a position: a token's id, or -1 where a picture stands."""
        ids: list[int] = []
        for chunk in self.chunks:
            ids.extend(chunk.token_ids if isinstance(chunk, TextChunk) else [-1] * len(self.rows(chunk)))
        return ids

    def positions(self, image: int = 0) -> list[int]:
        """Return the position of each row of a picture."""
        before = sum(span.n_rows for span in self.spans[:image])
        found = [at for at, token in enumerate(self.token_ids) if token < 0]
        return found[before : before + self.spans[image].n_rows]

    def parts(self, rows: Sequence[np.ndarray]) -> list[Part]:
        """Return what a decoder is fed: token ids and the pictures' rows, (n, D) each, in order."""
        return placed(self.chunks, rows, self.spans)

    def rows(self, chunk: ImageChunk) -> range:
        """Return which of its picture's rows stand in a chunk."""
        return range(self.spans[chunk.index].n_rows)[chunk.rows]

    def describe(self) -> list[dict[str, Any]]:
        """Return the chunks as JSON; a picture's width and height are those of the source, in pixels.

        A chunk that has not all rows of its picture names the picture, and which row is its first, from 0."""
        return [self._describe(chunk) for chunk in self.chunks]

    def _describe(self, chunk: TextChunk | ImageChunk) -> dict[str, Any]:
        if isinstance(chunk, TextChunk):
            return {"type": "text", "token_ids": list(chunk.token_ids)}
        height, width, _ = self.images[chunk.index].rgb.shape
        rows = self.rows(chunk)
        found = {"type": "image", "n_tokens": len(rows), "width": width, "height": height}
        whole = len(rows) == self.spans[chunk.index].n_rows
        return found if whole else found | {"image": chunk.index, "first": rows.start}


def counted(count: int) -> str:
    """Say how many pictures there are."""
    return "1 picture" if count == 1 else f"{count} pictures"


def placed(chunks: Sequence[TextChunk | ImageChunk], rows: Sequence[np.ndarray], spans: Sequence[Span]) -> list[Part]:
    """Return what a decoder is fed for chunks: token ids, and the pictures, by their rows or states (n, D) each."""
    pictures = [picture_part(found, span) for found, span in zip(rows, spans, strict=True)]

    def part(chunk: TextChunk | ImageChunk) -> Part:
        if isinstance(chunk, TextChunk):
            return chunk.token_ids
        picture = pictures[chunk.index]
        return picture[chunk.rows] if isinstance(picture, PictureRows) else picture

    return [part(chunk) for chunk in chunks]


def picture_part(rows: np.ndarray, span: Span) -> Picture:
    """Return a picture as a decoder takes it, by the rows (n, D) that its tower made."""
    return PictureRows(rows, span.grid) if span.n_seen is None else PictureStates(rows, span.n_seen)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and its figures."""

    text: str
    token_ids: tuple[int, ...]
    """Every token generated, an end-of-generation token at the end included."""
    finish_reason: FinishReason | None
    """None if the answer was cut off by its reader."""
    prompt: str
    """The prompt as rendered, `<image>` where a picture stands."""
    chunks: list[dict[str, Any]]
    usage: dict[str, Any]
    """As OpenAI's, picture positions counted as prompt tokens."""
    timings: dict[str, float | None]
    """Seconds of each stage and tokens a second; None where there is nothing to divide."""
    warnings: tuple[str, ...]
    """Notes for the reader about the pictures, and about parts of the messages that had no effect."""

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}..."
        return f"<Reply {text!r}: {self._figures()}>"

    def _figures(self) -> str:
        """Return the tokens, why the answer ended, the seconds it took, and the warnings."""
        seconds = {name.removesuffix("_s"): self.timings[name] or 0.0 for name in SECONDS}
        taken = [f"{name} {1000 * spent:.1f} ms" for name, spent in seconds.items() if spent >= 1e-4]
        prompt, own = self.usage["prompt_tokens"], self.usage["completion_tokens"]
        end = self.finish_reason or "cut off"
        return "; ".join([f"{prompt} + {own} tokens, {end}", ", ".join(taken), *self.warnings])

    def _repr_html_(self) -> str:
        return table((), [("answer", self.text), ("figures", self._figures()), ("prompt", self.prompt)])


@dataclass(slots=True)
class Clock:
    """Seconds of the stages, and the work that was reused; filled in as the answer comes."""

    load_s: float = 0.0
    preprocess_s: float = 0.0
    encode_s: float = 0.0
    cached_tokens: int = 0
    """Positions of the prompt that an earlier answer had left: `reuse`."""
    cached_rows: list[np.ndarray] = field(default_factory=list)
    """The pictures' rows among them."""

    def timings(self, n_prompt: int, seconds: Sequence[float]) -> dict[str, float | None]:
        """Return `Reply.timings`. `seconds`: of each token; the first one's is the prompt's."""
        prefill, decode = sum(seconds[:1], 0.0), sum(seconds[1:], 0.0)
        return {
            "load_s": self.load_s,
            "preprocess_s": self.preprocess_s,
            "encode_s": self.encode_s,
            "prefill_s": prefill,
            "decode_s": decode,
            "prefill_tok_s": n_prompt / prefill if prefill else None,
            "decode_tok_s": (len(seconds) - 1) / decode if decode else None,
        }


def usage(prompt_ids: Sequence[int], completion: int, cached: int = 0) -> dict[str, Any]:
    """Return OpenAI's usage object for the prompt's ids (-1 at picture positions) and the number of tokens
    generated."""
    images = sum(token < 0 for token in prompt_ids)
    details = {"text_tokens": len(prompt_ids) - images, "image_tokens": images, "cached_tokens": cached}
    return {
        "prompt_tokens": len(prompt_ids),
        "completion_tokens": completion,
        "total_tokens": len(prompt_ids) + completion,
        "prompt_tokens_details": details,
    }


def too_long(n: int, n_context: int, more: str = "") -> PromptError:
    """Return the error of a prompt of `n` positions, in OpenAI's words: by them routers of clients recognise it."""
    why = f"This model's maximum context length is {n_context} tokens, but the prompt has {n}"
    return PromptError("prompt", "tokens", f"{why}, {more}" if more else why, code="context_length_exceeded")


def remaining(n_prompt: int, n_context: int, max_tokens: int | None) -> int:
    """Return the tokens that may be generated: `max_tokens`, or fewer where the context ends first (None: to its end).

    Raises PromptError if the prompt leaves no room for one; ParameterError if `max_tokens` is no whole number above
    0."""
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise ParameterError("max_tokens", repr(max_tokens), "expected a whole number above 0")
    if n_prompt >= n_context:
        raise too_long(n_prompt, n_context, "and an answer needs room")
    left = n_context - n_prompt
    return left if max_tokens is None else min(max_tokens, left)
