"""Feed token ids and rows of pictures to a decoder: one sequence, its keys and values, its logits.

D decoder width, V vocabulary, T positions fed.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile

import numpy as np

from ..errors import ParameterError, PromptError
from ..models.family import LookingModel, TextModel
from ..ops.protocol import Array
from ..ops.sees import Sees
from ..ops.step import Stepper
from ..tracing.finite import RefuseNotFinite
from ..tracing.trace import Probes, Tap
from .looks import Looks
from .steps import Logits, Seat, SharedSteps
from .units import Part, Picture, PictureRows, Unit, by_units, ends_within, equal, joined, one_unit, positions, units

ROWS = 64  # positions whose logits `each` computes at once


@dataclass(frozen=True, slots=True)
class FedUnit:
    """A unit that was run, and where the sequence goes on behind it."""

    unit: Unit
    end: int  # positions in the cache
    position: int  # what rope turns the next row by: fewer than `end` where a picture is turned by its grid


class Session:
    """One sequence: the positions fed so far and their keys and values."""

    def __init__(
        self,
        text: TextModel,
        n_context: int | None = None,
        probes: Probes | None = None,
        steps: SharedSteps | None = None,
    ) -> None:
        """Begin an empty sequence of at most `n_context` positions (default: what the model was trained for), whose
        single tokens are run in `steps`, with those of other sequences."""
        c = text.config
        self._text, self._ops = text, text.ops
        self.n_context = n_context or c.context
        self._looks = Looks(text)
        self._cache = self._looks.cache(self.n_context)
        self._run_units: list[FedUnit] = []
        self._probes = Probes() if probes is None else probes
        looking = isinstance(text, LookingModel)  # whose plan has no pictures
        self._stepper = None if looking else text.ops.stepper(text.step_plan(), self._cache)
        self._seat: Seat | None = None if steps is None or self._stepper is None else steps.seat(self._stepper)
        self._left: list[Unit] = []  # units that were started and have not been run
        self._single = False  # whether what was started is one token
        self.seconds = 0.0
        """What was spent on that which was started last."""
        self.watched = False
        """Whether a probe may have changed what is kept here, so that nobody else may go on from it."""

    def __repr__(self) -> str:
        return f"<Session at position {self.n_past:,} of {self.n_context:,}>"

    @property
    def n_past(self) -> int:
        """Return the positions fed so far."""
        return self._cache.length

    @property
    def _position(self) -> int:
        """Return what rope turns the next row by."""
        return self._run_units[-1].position if self._run_units else 0

    def feed(self, parts: Sequence[Part], *, all_logits: bool = False) -> np.ndarray:
        """Run token ids and image rows, in order, at the next positions.

        Return the logits of the last position (V,), or of every one fed, (T, V), float32. Raises PromptError, before
        any work, where they do not fit the context; NumericsError where a NaN or infinity appears, naming the first
        tensor to hold one."""
        self.stop()
        self._check(parts)
        first, wanted = self.n_past, self._units(parts)
        self._looks.note(wanted, self._cache)
        hidden = [self._forward(run) for run in self._runs(wanted)]
        if all_logits:
            return self._logits(self._ops.concat(hidden), first)
        return self._logits(hidden[-1][-1:], self.n_past - 1)[-1]

    def next(self, parts: Sequence[Part]) -> Logits:
        """Run parts as `feed` does; return the logits of the last position, (V,).

        A single token is run by the backend's stepper, if it has one and nobody watches. Its logits may lie on the
        device, and are valid until the next call."""
        self.start(parts)
        while (logits := self.advance()) is None:
            pass
        return logits

    def start(self, parts: Sequence[Part]) -> None:
        """Say what is run next. `advance` runs it, a stretch at a time; a single token may share its step with those
        of other sequences, unless it is watched. Raises PromptError where it does not fit the context."""
        self.stop()
        self._check(parts)
        self._left, self.seconds = self._units(parts), 0.0
        self._looks.note(self._left, self._cache)
        first, self._cache.lag = self._left[0], self.n_past - self._position
        self._single = len(parts) == len(first) == 1 and not isinstance(first, Picture)
        if self._seat is not None and self._single and not isinstance(first, Picture) and not self._probes.complete:
            self._seat.ask(first[0])

    def advance(self) -> Logits | None:
        """Run the next stretch of what was started; return the logits of the last position, (V,), once all has run."""
        if self._stepper is not None and self._single and (self._has_run or not self._probes.complete):
            return self._step(self._stepper)
        began, run = time.perf_counter(), self._runs(self._left)[0]
        if self._seat is not None:
            self._seat.leave()
        hidden = self._forward(run)
        del self._left[: len(run)]
        logits = None if self._left else self._logits(hidden[-1:], self.n_past - 1)[-1]
        self.seconds += time.perf_counter() - began
        return logits

    @property
    def _has_run(self) -> bool:
        """Say whether another sequence's step has run the token already."""
        return self._seat is not None and self._seat.logits is not None

    def _step(self, stepper: Stepper) -> Logits:
        began, (token,) = time.perf_counter(), self._left
        assert not isinstance(token, Picture)
        if self._seat is not None and not self._has_run:
            self._seat.ask(token[0])  # again, in case it was watched when it was started
        with np.errstate(all="ignore"):  # Triton's interpreter computes with numpy
            logits = stepper.step(token[0]) if self._seat is None else self._seat.take()
        self._left = []
        self._run_units.append(FedUnit(token, self.n_past, self._position + 1))
        self.seconds = time.perf_counter() - began if self._seat is None else self._seat.seconds
        if not (np.isfinite(logits).all() if isinstance(logits, np.ndarray) else logits.finite):
            self._refuse()
        return logits

    def stop(self) -> None:
        """Forget what was started and `advance` has not run."""
        if self._seat is not None and self._seat.leave():  # another sequence's step has run it
            self._cache.truncate(self.n_past - 1)
        self._left = []

    def each(self, parts: Sequence[Part]) -> Iterator[np.ndarray]:
        """Yield logits (V,) of every position fed, one after the other: memory holds those of `ROWS` at once."""
        self.stop()
        self._check(parts)
        wanted = self._units(parts)
        self._looks.note(wanted, self._cache)
        for run in self._runs(wanted):
            first, hidden = self.n_past, self._forward(run)
            ends = ends_within(run, ROWS)
            if self._probes.whole:
                yield from self._logits(hidden, first, ends)
                continue
            for start, end in pairwise([0, *ends]):
                yield from self._logits(hidden[start:end], first + start)

    def common(self, parts: Sequence[Part]) -> int:
        """Count the positions run so far that `parts` begin with, in whole units."""
        same = self._same(self._units(parts))
        return self._run_units[same - 1].end if same else 0

    def rewind(self, parts: Sequence[Part]) -> list[Unit]:
        """Truncate to the longest common prefix with `parts`; return the rest of them, at least one unit.

        What is kept is bit for bit what would be computed again, because a unit's result depends on no other split."""
        self.stop()
        wanted = self._units(parts)
        same = self._same(wanted)
        del self._run_units[same:]
        self._cache.truncate(self._run_units[-1].end if self._run_units else 0)
        return wanted[same:]

    def _same(self, wanted: Sequence[Unit]) -> int:
        """Count the units run so far that are the first of `wanted`, of which the last is always to be run.

        None are where other pictures are looked at: rows in front of a picture may see it."""
        if not self._looks.are(wanted):
            return 0
        pairs = zip(self._run_units, wanted[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: equal(pair[0].unit, pair[1]), pairs))

    def _units(self, parts: Sequence[Part]) -> list[Unit]:
        return units(parts, self._text.WHOLE_PICTURES)

    def _runs(self, units: Sequence[Unit]) -> list[list[Unit]]:
        """Return what is run at once: everything where a probe must see it whole, else as many units as the backend
        joins, one at least."""
        return [list(units)] if self._probes.whole else joined(units, self._ops.joined_rows)

    def _check(self, parts: Sequence[Part]) -> None:
        count, c = sum(map(len, parts)), self._text.config
        if not count:
            raise PromptError("prompt", "tokens", "there are none")
        if self.n_past + count > self.n_context:
            problem = f"{self.n_past + count} positions do not fit the context of {self.n_context}"
            raise PromptError("prompt", "tokens", problem, code="context_length_exceeded")
        for part in map(one_unit, parts):
            if not isinstance(part, Picture):
                if not all(0 <= token < c.n_vocab for token in part):
                    raise PromptError("prompt", "tokens", f"an id is not in 0..{c.n_vocab - 1}")
            else:
                self._looks.check(part)

    def _forward(self, run: Sequence[Unit]) -> Array:
        """Return hidden states (n, D) of units run at once, which are then part of the sequence."""
        ops, first, c = self._ops, self.n_past, self._text.config
        largest = c.width * max(c.mlp_width, c.n_head * c.head_size)
        ends = list(accumulate(map(len, run)))
        self.watched |= self._probes.complete
        # bad numbers are found by `all_finite`, not by numpy's warnings
        with np.errstate(all="ignore"), ops.running(max(map(len, run)), largest):
            self._looks.show(self._cache, self._tap)
            rows = [self._looks.embedded(unit) for unit in run]
            tap = self._tap(first, first + ends[-1])
            apart = by_units(ops, first, ends, largest) if self._probes.whole else ops
            turns, behind = self._positions(run)
            x, sees = ops.concat(rows), self._sees(run, first)
            hidden = self._text.forward(x, sees, turns, self._cache, apart, tap)
        self._run_units += [FedUnit(unit, first + end, at) for unit, end, at in zip(run, ends, behind, strict=True)]
        return hidden

    def _positions(self, run: Sequence[Unit]) -> tuple[np.ndarray, list[int]]:
        """Return what rope turns the rows of `run` by, and the position behind each unit."""
        turns, behind = list[np.ndarray](), list[int]()
        at = self._position
        for unit in run:
            found, at = positions(unit, at, self._text.GRID_POSITIONS)
            turns.append(found)
            behind.append(at)
        return np.concatenate(turns), behind

    def _sees(self, run: Sequence[Unit], first: int) -> Sees:
        """Describe what the rows of `run` see: all before them, and the rows of a picture one another where they do."""
        key = np.arange(first + sum(map(len, run)))
        if not self._text.WHOLE_PICTURES:
            return Sees(key[first:], key)
        numbers = [np.full(len(unit), i if isinstance(unit, PictureRows) else -1) for i, unit in enumerate(run)]
        picture = np.concatenate([np.full(first, -1), *numbers])
        return Sees(key[first:], key, pictures=(picture[first:], picture))

    def _logits(self, hidden: Array, first: int, ends: Sequence[int] = ()) -> np.ndarray:
        """Return (n, V) of hidden states (n, D) at positions from `first` on, computed apart up to each of `ends`."""
        n, c = hidden.shape[0], self._text.config
        tap = self._tap(first, first + n)
        largest = c.n_vocab * c.width
        ops = by_units(self._ops, first, ends or [n], largest)
        with np.errstate(all="ignore"), ops.running(n, largest):
            logits = self._text.logits(hidden, ops, tap)
        if not self._ops.all_finite(logits):
            self._refuse()
        return self._ops.numpy(logits)

    def _refuse(self) -> None:
        """Run everything again to name the first tensor that is not finite; an edit may have brought it in."""
        again = Session(self._text, self.n_context, Probes(RefuseNotFinite(self._ops, self._text.file.path, None)))
        deque(again.each([run.unit for run in self._run_units]), maxlen=0)
        if self._probes.whole:
            raise ParameterError("intervene", "result_output", "holds NaN or infinity, which an edit brought in")

    def _tap(self, first: int, end: int) -> Tap:
        return self._probes.tap(self, range(first, end))


def shared_steps(text: TextModel) -> SharedSteps | None:
    """Return the steps that sequences of a decoder share; None where the backend runs each by itself."""
    return SharedSteps(text.ops) if text.ops.together > 1 and Session(text)._stepper is not None else None


def unembed(text: TextModel, hidden: np.ndarray) -> np.ndarray:
    """Apply the final norm and the output matrix to hidden states of any layer.  (T, D) -> (T, V) float32"""
    c = text.config
    with text.ops.running(len(hidden), c.n_vocab * c.width):
        return text.ops.numpy(text.logits(text.ops.array(hidden), text.ops))
