"""The token loop: a prompt's parts -> an iterator of steps, one a token.   V vocabulary.

Everything is decided between tokens: closing the iterator stops the work before the next one.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from .errors import ParameterError, PromptError
from .sampler import Sampler

FinishReason = Literal["stop", "length"]


class Feeds(Protocol):
    """What the loop needs of `engine.Session`."""

    def feed(self, parts: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray: ...  # logits of the last position (V,)


class Decodes(Protocol):
    """What the loop needs of `tokenizer.StreamDecoder`."""

    def push(self, token: int) -> str: ...

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
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.met = True
            return self._release(min(found))
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


def room(n_prompt: int, n_context: int, max_tokens: int | None) -> int:
    """Tokens that may be generated: `max_tokens`, or fewer where the context ends first (None: until it ends).

    PromptError if the prompt leaves no room for one; ParameterError if `max_tokens` is not a whole number above 0."""
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise ParameterError("max_tokens", repr(max_tokens), "expected a whole number above 0")
    if n_prompt >= n_context:
        problem = f"{n_prompt} and room for an answer do not fit the context of {n_context}"
        raise PromptError("prompt", "tokens", problem)
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
        token = sampler.pick(session.feed(parts))
        parts = [[token]]
        ended = token in end_ids
        text = "" if ended else stops.push(decoder.push(token))
        ended = ended or stops.met
        last = ended or count == limit
        if last and not stops.met:
            text += stops.push(decoder.flush()) + stops.flush()
        reason: FinishReason | None = "stop" if ended or stops.met else "length" if last else None
        yield Step(token, text, reason, time.perf_counter() - began)
        if last:
            return
