"""Generate an answer token by token: a state between the logits and the next parts to feed.

Everything is decided between tokens: closing a stream stops the work before the next one. V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np

from ..ops.step import NextLogits
from .request import Clock, FinishReason, Reply, Request, Step, usage
from .sampler import Sampler
from .stops import StopStrings
from .units import Part


class TokenDecoder(Protocol):
    """Token ids -> text as it becomes complete: `tokenizer.tokenizer.StreamDecoder`."""

    def push(self, token_id: int, /) -> str: ...

    def flush(self) -> str: ...


class Answer:
    """One answer as it grows: `parts` are to be fed next, and `take` makes of their logits the next step.

    A state and not a loop, so that one sequence and many can share the loop that feeds them."""

    def __init__(
        self,
        parts: Sequence[Part],
        sampler: Sampler,
        decoder: TokenDecoder,
        stops: StopStrings,
        end_ids: frozenset[int],
        limit: int,
    ) -> None:
        """Begin with the prompt's parts. `end_ids`: tokens that end an answer; `limit`: tokens at most."""
        self.parts, self.done = list(parts), False
        self._sampler, self._decoder, self._stops = sampler, decoder, stops
        self._end_ids, self._left = end_ids, limit

    def take(self, logits: np.ndarray | NextLogits, began: float) -> Step:
        """Choose the next token by logits (V,) of the last position. `began`: when its work did, of `perf_counter`.

        An end-of-generation token is a step of its own, without text."""
        token = self._sampler.pick(logits)
        self._left -= 1
        ended = token in self._end_ids
        text = "" if ended else self._stops.push(self._decoder.push(token))
        self.done = ended or self._stops.met or not self._left
        if self.done and not self._stops.met:
            text += self._stops.push(self._decoder.flush()) + self._stops.flush()
        self.parts = [[token]]
        return Step(token, text, self._reason(ended), time.perf_counter() - began, self._sampler.score(logits, token))

    def _reason(self, ended: bool) -> FinishReason | None:
        if not self.done:
            return None
        return "stop" if self._stops.met or (ended and not self._sampler.cut) else "length"


class Turn(Enum):
    """Where work for one answer can stop for that of others, and there is nothing to show."""

    PROMPT = "a stretch of a prompt, or a picture, is run next"
    TOKEN = "a token has come, without text"


class Runs(Protocol):
    """Runs what an answer is to be fed: `session.Session`."""

    @property
    def seconds(self) -> float: ...

    def start(self, parts: Sequence[Part]) -> None: ...

    def advance(self) -> np.ndarray | NextLogits | None: ...


def answered(answer: Answer, session: Runs) -> Iterator[Step | Turn]:
    """Yield the steps of an answer, and a turn in front of each stretch of its prompt.

    The next token is started before a step is given out, so that another sequence's step can run it meanwhile."""
    session.start(answer.parts)
    yield Turn.PROMPT
    while not answer.done:
        logits = session.advance()
        if logits is None:
            yield Turn.PROMPT
            continue
        step = answer.take(logits, time.perf_counter() - session.seconds)
        if not answer.done:
            session.start(answer.parts)
        yield step


@dataclass(slots=True)
class Stream(Iterator[str]):
    """One answer as it comes: iterate for pieces of text; then `reply`. No work is done before the first piece.

    `close` stops it between two tokens; `reply` then has what came until there."""

    request: Request
    clock: Clock
    begin: Callable[[], Iterator[Step | Turn]]
    _turns: Iterator[Step | Turn] | None = None
    _taken: list[Step] = field(default_factory=list)

    def turns(self) -> Iterator[Step | Turn]:
        """Yield the same answer token by token, and `Turn.PROMPT` where other work can come in between."""
        return iter(self._turn, None)

    def steps(self) -> Iterator[Step]:
        """Yield the same answer token by token, the ones without text too."""
        return (turn for turn in self.turns() if isinstance(turn, Step))

    def _turn(self) -> Step | Turn | None:
        if self._turns is None:
            self._turns = self.begin()
        turn = next(self._turns, None)
        if isinstance(turn, Step):
            self._taken.append(turn)
        return turn

    def __next__(self) -> str:
        for step in self.steps():
            if step.text:
                return step.text
        raise StopIteration

    @property
    def n_tokens(self) -> int:
        """Return the tokens that have come so far."""
        return len(self._taken)

    def close(self) -> None:
        self._turns = iter(())

    def finish(self) -> Reply:
        """Run to the end."""
        for _ in self.steps():
            pass
        return self.reply

    @property
    def reply(self) -> Reply:
        """Return what has come so far; the whole answer once the iteration has ended."""
        taken, ids = self._taken, self.request.token_ids
        return Reply(
            text="".join(step.text for step in taken),
            token_ids=tuple(step.token_id for step in taken),
            finish_reason=taken[-1].finish_reason if taken else None,
            prompt=self.request.prompt.shown,
            chunks=self.request.describe(),
            usage=usage(ids, len(taken), self.clock.cached_tokens),
            timings=self.clock.timings(len(ids), [step.seconds for step in taken]),
            warnings=(*(w for image in self.request.images for w in image.warnings), *self.request.notes),
        )
