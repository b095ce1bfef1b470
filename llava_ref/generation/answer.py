"""The token loop: a prompt's parts -> an iterator of steps, one a token; and the reply they add up to.   V vocabulary.

Everything is decided between tokens: closing the iterator stops the work before the next one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from ..chat.chunks import ImageChunk, Prompt, TextChunk
from ..errors import ParameterError, PromptError
from ..images.decoding import DecodedImage
from .sampler import Sampler
from .scores import Score

FinishReason = Literal["stop", "length"]


class Feeds(Protocol):
    """What the loop needs of `generation.engine.Session`."""

    def feed(self, parts: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray: ...  # logits of the last position (V,)


class Decodes(Protocol):
    """What the loop needs of `tokenizer.tokenizer.StreamDecoder`."""

    def push(self, token_id: int, /) -> str: ...

    def flush(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer."""

    token_id: int
    text: str
    """What can be shown now. Empty while a character is incomplete or a stop string may be beginning."""
    finish_reason: FinishReason | None
    """On the last step only: "stop" for an end-of-generation token or a stop string, "length" for a limit."""
    seconds: float
    """Time this token took; the first one's is the prompt's."""
    score: Score | None = None
    """Its log-probability, where `Sampling.top_logprobs` asks for it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt ready to run: its chunks, the pictures they name, and how many positions each picture takes."""

    prompt: Prompt
    chunks: tuple[TextChunk | ImageChunk, ...]
    images: tuple[DecodedImage, ...]
    tokens_per_image: int
    decode_s: float
    """Seconds spent on reading the pictures."""
    continues: bool = False
    """The answer goes on in the middle of a text, so that a space it begins with is shown."""
    notes: tuple[str, ...] = ()
    """What had no effect, one sentence each."""

    @property
    def token_ids(self) -> list[int]:
        """One number a position: a token's id, or -1 where a picture stands."""
        ids: list[int] = []
        for chunk in self.chunks:
            ids.extend(chunk.token_ids if isinstance(chunk, TextChunk) else [-1] * self.tokens_per_image)
        return ids

    def describe(self) -> list[dict[str, Any]]:
        """The chunks as JSON; a picture's width and height are those of the source, in pixels."""
        return [self._describe(chunk) for chunk in self.chunks]

    def _describe(self, chunk: TextChunk | ImageChunk) -> dict[str, Any]:
        if isinstance(chunk, TextChunk):
            return {"type": "text", "token_ids": list(chunk.token_ids)}
        height, width, _ = self.images[chunk.index].rgb.shape
        return {"type": "image", "n_tokens": self.tokens_per_image, "width": width, "height": height}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and what it took."""

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
    """What a reader should know about the pictures, and what in the messages had no effect."""


@dataclass(slots=True)
class Clock:
    """Seconds of the stages, and what did not have to be run; filled in as the answer comes."""

    load_s: float = 0.0
    preprocess_s: float = 0.0
    encode_s: float = 0.0
    cached_tokens: int = 0
    """Positions of the prompt that an earlier answer had left: `reuse`."""
    cached_rows: list[np.ndarray] = field(default_factory=list)
    """The pictures' rows among them."""


@dataclass(slots=True)
class Stream(Iterator[str]):
    """One answer as it comes: iterate for pieces of text; then `reply`. No work is done before the first piece.

    `close` stops it between two tokens; `reply` then has what came until there."""

    request: Request
    clock: Clock
    begin: Callable[[], Iterator[Step]]
    _steps: Iterator[Step] | None = None
    _taken: list[Step] = field(default_factory=list)

    def steps(self) -> Iterator[Step]:
        """The same answer token by token, the ones without text too."""
        return iter(self._step, None)

    def _step(self) -> Step | None:
        if self._steps is None:
            self._steps = self.begin()
        step = next(self._steps, None)
        if step is not None:
            self._taken.append(step)
        return step

    def __next__(self) -> str:
        for step in self.steps():
            if step.text:
                return step.text
        raise StopIteration

    def close(self) -> None:
        self._steps = iter(())

    def finish(self) -> Reply:
        """Runs to the end."""
        for _ in self.steps():
            pass
        return self.reply

    @property
    def reply(self) -> Reply:
        """What has come so far; the whole answer once the iteration has ended."""
        taken = self._taken
        return Reply(
            text="".join(step.text for step in taken),
            token_ids=tuple(step.token_id for step in taken),
            finish_reason=taken[-1].finish_reason if taken else None,
            prompt=self.request.prompt.shown,
            chunks=self.request.describe(),
            usage=usage(self.request.token_ids, len(taken), self.clock.cached_tokens),
            timings=self._timings(),
            warnings=(*(w for image in self.request.images for w in image.warnings), *self.request.notes),
        )

    def _timings(self) -> dict[str, float | None]:
        seconds = [step.seconds for step in self._taken]
        prefill, decode = sum(seconds[:1], 0.0), sum(seconds[1:], 0.0)
        return {
            "load_s": self.clock.load_s,
            "preprocess_s": self.clock.preprocess_s,
            "encode_s": self.clock.encode_s,
            "prefill_s": prefill,
            "decode_s": decode,
            "prefill_tok_s": len(self.request.token_ids) / prefill if prefill else None,
            "decode_tok_s": (len(seconds) - 1) / decode if decode else None,
        }


def usage(prompt_ids: Sequence[int], completion: int, cached: int = 0) -> dict[str, Any]:
    """OpenAI's usage object from the prompt's ids (-1 at picture positions) and the number of tokens generated."""
    images = sum(token < 0 for token in prompt_ids)
    details = {"text_tokens": len(prompt_ids) - images, "image_tokens": images, "cached_tokens": cached}
    return {
        "prompt_tokens": len(prompt_ids),
        "completion_tokens": completion,
        "total_tokens": len(prompt_ids) + completion,
        "prompt_tokens_details": details,
    }


class StopStrings:
    """Text as it comes -> text that may be shown, up to the first stop string and without it."""

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise ParameterError("stop", repr(stops), "expected a list of strings that are not empty")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.met = False

    def push(self, text: str) -> str:
        """More text; what of it may be shown. The rest is held while it could be the start of a stop string."""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:  # the first to be complete, however the text was cut into pieces
            self.met = True
            return self._release(min(found)[1])
        for length in range(min(len(self._held), self._longest - 1), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return self._release(len(self._held) - length)
        return self._release(len(self._held))

    def flush(self) -> str:
        """What is still held when the answer ends: no stop string after all."""
        return "" if self.met else self._release(len(self._held))

    def _release(self, end: int) -> str:
        out, self._held = self._held[:end], self._held[end:]
        return out


def too_long(n: int, n_context: int, more: str = "") -> PromptError:
    """Return the error of a prompt of `n` positions, in OpenAI's words: by them routers of clients recognise it."""
    why = f"This model's maximum context length is {n_context} tokens, but the prompt has {n}"
    return PromptError("prompt", "tokens", f"{why}, {more}" if more else why)


def room(n_prompt: int, n_context: int, max_tokens: int | None) -> int:
    """Tokens that may be generated: `max_tokens`, or fewer where the context ends first (None: until it ends).

    PromptError if the prompt leaves no room for one; ParameterError if `max_tokens` is not a whole number above 0."""
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise ParameterError("max_tokens", repr(max_tokens), "expected a whole number above 0")
    if n_prompt >= n_context:
        raise too_long(n_prompt, n_context, "and an answer needs room")
    left = n_context - n_prompt
    return left if max_tokens is None else min(max_tokens, left)


def generate(
    session: Feeds,
    parts: Sequence[Sequence[int] | np.ndarray],
    sampler: Sampler,
    decoder: Decodes,
    end_ids: frozenset[int],
    stops: StopStrings,
    limit: int,
) -> Iterator[Step]:
    """At most `limit` tokens after the prompt's `parts` (token ids, and image rows (n, D)).

    An end-of-generation token is a step of its own, without text. The session's errors pass through."""
    for count in range(1, limit + 1):
        began = time.perf_counter()
        logits = session.feed(parts)
        token = sampler.pick(logits)
        parts = [[token]]
        ended = token in end_ids
        text = "" if ended else stops.push(decoder.push(token))
        ended = ended or stops.met
        last = ended or count == limit
        if last and not stops.met:
            text += stops.push(decoder.flush()) + stops.flush()
        stopped = stops.met or (ended and not sampler.cut)
        reason: FinishReason | None = "stop" if stopped else "length" if last else None
        yield Step(token, text, reason, time.perf_counter() - began, sampler.score(logits, token))
        if last:
            return
