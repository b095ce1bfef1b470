"""Watch how large a run's numbers are: stop at the first that is NaN or infinity, and measure the room in float16."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import NumericsError
from ..ops.protocol import Array, Ops
from .trace import At, Probe

FLOAT16 = float(np.finfo(np.float16).max)
"""The largest number of float16, 65,504: a larger one becomes infinity in an engine that computes in float16."""


class RefuseNotFinite(Probe):
    """Raises NumericsError at the first array with a NaN or infinity.

    `text`, `tower`: the files that the error names, for arrays of a sequence and of a picture; one may be None."""

    def __init__(self, ops: Ops, text: Path | None, tower: Path | None) -> None:
        super().__init__(["*"])
        self._ops, self._text, self._tower = ops, text, tower

    def see(self, x: Array, at: At) -> Array:
        on_host = isinstance(x, np.ndarray)
        if not (np.isfinite(x).all() if on_host else self._ops.all_finite(x)):
            file = self._tower if at.positions is None else self._text
            raise NumericsError(file, at.numbered, _not_finite(x if on_host else self._ops.numpy(x), at))
        return x


def _not_finite(x: np.ndarray, at: At) -> str:
    """Say where the first NaN or infinity of an array stands, and how many there are."""
    bad = ~np.isfinite(x)
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    number = "NaN" if np.isnan(x[first]) else "infinity"
    return f"holds {number} at {_place(first, at)}, the first array to do so: {bad.sum():,} of {_shape(x)} numbers"


def _place(index: tuple[int, ...], at: At) -> str:
    """Say where in a run a number stands: rows of the decoder by their position in the sequence."""
    if at.positions is None:
        return f"index {list(index)}"
    element = index[1] if len(index) == 2 else list(index[1:])
    return f"position {at.positions[index[0]]}, element {element}"


def _shape(x: np.ndarray) -> str:
    return " x ".join(map(str, x.shape))


@dataclass(slots=True)
class Magnitude:
    """Holds the number of a stage that is largest in magnitude."""

    largest: float = 0.0
    place: str = ""
    """Where it stands, in words."""

    @property
    def headroom(self) -> float:
        """Return how many times larger it could be in float16; below 1 it overflows."""
        return FLOAT16 / self.largest if self.largest else np.inf


@dataclass(eq=False)
class Magnitudes(Probe):
    """Measures the largest magnitude of every stage, over all pictures, tiles and positions; `stages` has them in the
    order computed. Attention weights are left out: they are between 0 and 1."""

    ops: Ops
    stages: dict[str, Magnitude] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(["*"])

    def see(self, x: Array, at: At) -> Array:
        y = np.nan_to_num(np.abs(x if isinstance(x, np.ndarray) else self.ops.numpy(x)), nan=np.inf, posinf=np.inf)
        first = tuple(int(i) for i in np.unravel_index(int(y.argmax()), y.shape))
        kept = self.stages.setdefault(at.name, Magnitude())
        if not kept.place or y[first] > kept.largest:
            kept.largest, kept.place = float(y[first]), _place(first, at)
        return x
