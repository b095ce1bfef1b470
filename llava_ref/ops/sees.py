"""Describe which keys each query sees, so that a fused kernel can read the fields and `mask` can draw them.

T queries, S keys.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Sees:
    """Which of S keys each of T queries sees. Orders count positions of the sequence, whatever rope turns them by.

    A query sees the keys up to itself (`causal`), and of its own picture those behind it too (`pictures`). A `window`
    then hides what lies `window` or more positions before the query, inside a picture too, as llama.cpp (b11549) and
    transformers (5.24) do."""

    query: np.ndarray  # (T,) order in the sequence
    key: np.ndarray  # (S,)
    causal: bool = True
    window: int | None = None
    pictures: tuple[np.ndarray, np.ndarray] | None = None
    """(T,) (S,): the number of the picture whose rows see one another; -1 for none."""

    @classmethod
    def all(cls, n: int) -> "Sees":
        """Describe n positions that all see one another: a tower."""
        order = np.arange(n)
        return cls(order, order, causal=False)

    def hidden(self) -> np.ndarray:
        """Return (T, S) bool: where a query does not see a key."""
        query, key = self.query[:, None], self.key[None, :]
        hidden = key > query if self.causal else np.zeros((len(self.query), len(self.key)), bool)
        if self.pictures is not None:
            ours, theirs = self.pictures
            hidden &= (ours[:, None] != theirs[None, :]) | (ours[:, None] < 0)
        if self.window is not None:
            hidden |= query - key >= self.window
        return hidden

    def mask(self) -> np.ndarray | None:
        """Return (T, S): 0 where a query sees a key and -inf where not; None where it sees every key."""
        hidden = self.hidden()
        return np.where(hidden, -np.inf, 0) if hidden.any() else None

    def part(self, start: int, end: int, n_keys: int) -> "Sees":
        """Return the same of queries start..end-1 and the first `n_keys` keys."""
        pictures = None if self.pictures is None else (self.pictures[0][start:end], self.pictures[1][:n_keys])
        return Sees(self.query[start:end], self.key[:n_keys], self.causal, self.window, pictures)

    def reach(self, block: int) -> np.ndarray:
        """Return (ceil(T / block), 2): the first and the behind-last key that any query of a block sees.

        Memory grows with T + S. Keys that are not in order reach from the first to the last."""
        first, end = self._range()
        return np.stack([_blocks(np.minimum, first, block), _blocks(np.maximum, end, block)], 1)

    def common(self, block: int) -> np.ndarray:
        """Return (ceil(T / block), 2): a range of keys that every query of a block sees, for tiles that need no mask.

        It lies within `reach`. Keys behind a query of its own picture, and keys that are not in order, are left out."""
        if not self._in_order():
            return np.zeros_like(self.reach(block))
        first, end = self._range(pictures=False)
        start = _blocks(np.maximum, first, block)
        return np.stack([start, np.maximum(_blocks(np.minimum, end, block), start)], 1)

    def _in_order(self) -> bool:
        return bool((np.diff(self.key) >= 0).all())

    def _range(self, pictures: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return (T,) (T,): the first and the behind-last key that each query sees."""
        first, end = np.zeros(len(self.query), np.intp), np.full(len(self.query), len(self.key), np.intp)
        if not self._in_order():
            return first, end
        if self.window is not None:
            first = np.searchsorted(self.key, self.query - self.window, "right")
        if self.causal:
            end = np.searchsorted(self.key, self.query, "right")
            if pictures and self.pictures is not None:
                end = np.maximum(end, _end_of_picture(*self.pictures))
        return first, end


def _blocks(extreme: np.ufunc, values: np.ndarray, block: int) -> np.ndarray:
    """Return the extreme of every `block` values.  (T,) -> (ceil(T / block),)"""
    return extreme.reduceat(values, np.arange(0, len(values), block))


def _end_of_picture(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the index behind the last key of each query's picture; 0 for none.  (T,) (S,) -> (T,)"""
    ends = np.zeros(max(ours.max(), theirs.max()) + 2, np.intp)  # the last stands for -1
    np.maximum.at(ends, theirs[theirs >= 0], np.flatnonzero(theirs >= 0) + 1)
    return ends[ours]
