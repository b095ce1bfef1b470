"""Keep what layers that look at pictures see: keys and values of the pictures' states, beside those of the sequence.

n states of a picture, n_seen of them of tiles that are there; T rows, Hkv key/value heads, dh head size, D width.
"""

from dataclasses import dataclass

import numpy as np

from ..ops.protocol import KV, Array, Cache, Ops

PICTURE = "<|image|>"
"""The token at which a picture stands."""


@dataclass(frozen=True, slots=True, eq=False)
class PictureStates:
    """A picture that stands at one token, and is looked at."""

    data: np.ndarray  # (n, D)
    n_seen: int

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return f"<PictureStates {list(self.data.shape)}, {self.n_seen} seen>"


@dataclass(frozen=True, slots=True)
class Looked:
    """A picture's place: the position of its token, and the range of its states among those that are seen."""

    at: int
    first: int
    end: int


class LookingCache:
    """Implement `arrays.Cache` for a sequence with pictures that are looked at."""

    def __init__(self, rows: Cache, ops: Ops) -> None:
        """`rows`: of the layers that look back along the sequence."""
        self.rows, self._ops = rows, ops
        self.pictures: list[Looked] = []
        self._seen: dict[int, tuple[Array, Array]] = {}
        self._rest: dict[int, tuple[Array, Array]] = {}

    @property
    def lag(self) -> int:
        return self.rows.lag

    @lag.setter
    def lag(self, value: int) -> None:
        self.rows.lag = value

    @property
    def length(self) -> int:
        return self.rows.length

    def append(self, layer: int, k: Array, v: Array) -> KV:
        return self.rows.append(layer, k, v)

    def advance(self, count: int) -> None:
        """Move on; behind the first picture nobody asks for states of tiles that are not there."""
        self.rows.advance(count)
        if self.pictures and self.length > self.pictures[0].at:
            self._rest.clear()

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on, and pictures whose token is there."""
        self.rows.truncate(length)
        kept = [picture for picture in self.pictures if picture.at < length]
        if len(kept) < len(self.pictures):
            self.pictures, n = kept, kept[-1].end if kept else 0
            self._seen = {layer: (k[:n], v[:n]) for layer, (k, v) in self._seen.items()}
            self._rest.clear()

    def look(self, at: int, n_seen: int, states: dict[int, tuple[Array, Array]]) -> None:
        """Add a picture by its keys and values, (n, Hkv, dh) each, of every layer that looks at pictures."""
        first = self.pictures[-1].end if self.pictures else 0
        self.pictures.append(Looked(at, first, first + n_seen))
        for layer, (k, v) in states.items():
            self._seen[layer] = self._joined(self._seen.get(layer), k[:n_seen], v[:n_seen])
            self._rest[layer] = self._joined(self._rest.get(layer), k[n_seen:], v[n_seen:])

    def n_states(self, everything: bool) -> int:
        """Return how many states `kv` has."""
        rest = next(iter(self._rest.values()), None) if everything else None
        return self.pictures[-1].end + (0 if rest is None else rest[0].shape[0])

    def kv(self, layer: int, everything: bool) -> KV:
        """Return a layer's keys and values of the states that are seen, and of `everything` behind them."""
        k, v = self._seen[layer]
        if everything and layer in self._rest:
            k, v = self._joined((k, v), *self._rest[layer])
        return KV(k, v)

    def ranges(self, rows: np.ndarray) -> np.ndarray:
        """Return the states that rows at these positions see; none in front of all pictures.  (T,) -> (T, 2)"""
        found = np.zeros((len(rows), 2), np.intp)
        together = 0  # the first of the pictures whose tokens stand side by side
        for i, picture in enumerate(self.pictures):
            if i and self.pictures[i - 1].at != picture.at - 1:
                together = i
            found[rows >= picture.at] = self.pictures[together].first, picture.end
        return found

    def _joined(self, before: tuple[Array, Array] | None, k: Array, v: Array) -> tuple[Array, Array]:
        return (k, v) if before is None else (self._ops.concat([before[0], k]), self._ops.concat([before[1], v]))
