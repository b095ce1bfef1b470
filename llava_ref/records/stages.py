"""Hash the arrays of a run, and find the first in which two runs differ."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from ..errors import ParameterError
from ..ops.protocol import Array, Ops
from ..tracing.trace import At, Probe

MAX_ARRAYS = 400_000
"""Arrays of one record: of a 7B model 700 tokens, of the embedded one 4,000."""
DIGITS = 32  # of a hash, in hexadecimal: 128 bits


@dataclass(frozen=True, slots=True)
class HashedPass:
    """The arrays of one forward pass, or of all pictures, in the order computed."""

    first: int | None
    """The position of the first row; None for pictures."""
    end: int | None
    """The position behind the last."""
    arrays: list[str]
    """A stage's name and a hash of its bytes, shape and type: "blk.0.out 0f3c..."."""


class StageHashes(Probe):
    """Hashes every array but the attention weights. Raises ParameterError beyond `MAX_ARRAYS`."""

    def __init__(self, ops: Ops) -> None:
        super().__init__(["*"])
        self._ops, self._count = ops, 0
        self.passes: list[HashedPass] = []

    def see(self, x: Array, at: At) -> Array:
        self._count += 1
        if self._count > MAX_ARRAYS:
            raise ParameterError("record", "arrays", f"more than {MAX_ARRAYS:,}, expected an answer of fewer tokens")
        first, end = (None, None) if at.positions is None else (at.positions.start, at.positions.stop)
        if not self.passes or (self.passes[-1].first, self.passes[-1].end) != (first, end):
            self.passes.append(HashedPass(first, end, []))
        self.passes[-1].arrays.append(f"{at.numbered} {digest(x if isinstance(x, np.ndarray) else self._ops.numpy(x))}")
        return x


def digest(x: np.ndarray) -> str:
    """Return the beginning of the SHA-256 of an array's type and shape, as in "float32 [3, 64]", and its bytes."""
    found = hashlib.sha256(f"{x.dtype.name} {list(x.shape)}".encode())
    found.update(np.ascontiguousarray(x).data)
    return found.hexdigest()[:DIGITS]


@dataclass(frozen=True, slots=True)
class HashedArray:
    """One array of a run."""

    stage: str
    first: int | None
    end: int | None
    hash: str

    @property
    def place(self) -> str:
        """Say which array it is: its stage, and the positions of its rows."""
        if self.first is None or self.end is None:
            return self.stage
        one = self.first + 1 == self.end
        return f"{self.stage} at position{f' {self.first}' if one else f's {self.first} to {self.end - 1}'}"


def each_array(passes: Sequence[HashedPass]) -> Iterator[HashedArray]:
    """Yield the arrays of a run in the order computed."""
    for one in passes:
        for text in one.arrays:
            stage, _, hashed = text.rpartition(" ")
            yield HashedArray(stage, one.first, one.end, hashed)


Pair = tuple[HashedArray | None, HashedArray | None]


def first_difference(recorded: Sequence[HashedPass], here: Sequence[HashedPass]) -> tuple[int, Pair | None]:
    """Return how many arrays at the beginning of two runs are the same, and the first two that are not.

    One of the two is None where a run has no more arrays; the pair is None if the runs are the same."""
    same = 0
    for pair in zip_longest(each_array(recorded), each_array(here)):
        if pair[0] != pair[1]:
            return same, pair
        same += 1
    return same, None
