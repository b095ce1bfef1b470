"""Run the next tokens of several sequences of one decoder in one step.   V vocabulary.

A sequence says which token it will run next (`Seat.ask`) and takes the logits when its turn comes (`Seat.take`). The
first that takes runs the tokens of all that have asked. So nobody waits for anybody: one alone runs alone, and one that
never comes back costs the others nothing. All of it in one thread.
"""

import time
from weakref import WeakKeyDictionary

import numpy as np

from ..ops.protocol import Ops
from ..ops.step import NextLogits, Stepper

Logits = np.ndarray | NextLogits


class SharedSteps:
    """The steps of one decoder: which sequences have asked, in the order in which they did."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._asked: WeakKeyDictionary[Seat, int] = WeakKeyDictionary()  # and their tokens

    def seat(self, stepper: Stepper) -> "Seat":
        """Give a sequence its place."""
        return Seat(stepper, self)

    def ask(self, seat: "Seat", token: int) -> None:
        self._asked[seat] = token

    def forget(self, seat: "Seat") -> None:
        self._asked.pop(seat, None)

    def run(self, seat: "Seat") -> None:
        """Run the token of a seat, and with it those that were asked for longest ago, as many as may share a step.

        Where the step fails, the seat's own token is run by itself, so that only the sequence at fault fails."""
        others = [other for other in self._asked if other is not seat]
        share = [seat, *others[: self._ops.together - 1]]
        try:
            self._step(share)
        except Exception:
            if len(share) == 1:
                raise
            self._step([seat])

    def _step(self, share: list["Seat"]) -> None:
        began, tokens = time.perf_counter(), [self._asked[seat] for seat in share]
        with np.errstate(all="ignore"):  # Triton's interpreter computes with numpy
            found = self._ops.step_together([seat.stepper for seat in share], tokens)
        seconds = time.perf_counter() - began
        for seat, logits in zip(share, found, strict=True):
            self.forget(seat)
            seat.logits, seat.seconds = logits, seconds


class Seat:
    """The place of one sequence among those that share steps."""

    def __init__(self, stepper: Stepper, steps: SharedSteps) -> None:
        self.stepper, self._steps = stepper, steps
        self.logits: Logits | None = None
        """Of the token asked for last, (V,), from when it has been run until they are taken."""
        self.seconds = 0.0
        """What that step took; others share it, and it counts in full for each."""

    def ask(self, token: int) -> None:
        """Say which token is run next."""
        self._steps.ask(self, token)

    def take(self) -> Logits:
        """Return the logits (V,) of the token that was asked for, and run it if no other sequence has."""
        if self.logits is None:
            self._steps.run(self)
        logits, self.logits = self.logits, None
        assert logits is not None
        return logits

    def leave(self) -> bool:
        """Take back what was asked for. Return whether it has been run already."""
        ran, self.logits = self.logits is not None, None
        self._steps.forget(self)
        return ran
