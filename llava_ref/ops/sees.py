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
    within: np.ndarray | None = None
    """(T, 2): the first and the behind-last key beyond which a query sees nothing: windows of a tower, one picture of
    several."""

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
        if self.within is not None:
            number = np.arange(len(self.key))
            hidden |= (number < self.within[:, :1]) | (number >= self.within[:, 1:])
        return hidden

    def mask(self) -> np.ndarray | None:
        """Return (T, S): 0 where a query sees a key and -inf where not; None where it sees every key."""
        hidden = self.hidden()
        return np.where(hidden, -np.inf, 0) if hidden.any() else None

    def part(self, start: int, end: int, n_keys: int) -> "Sees":
        """Return the same of queries start..end-1 and the first `n_keys` keys."""
        pictures = None if self.pictures is None else (self.pictures[0][start:end], self.pictures[1][:n_keys])
        within = None if self.within is None else self.within[start:end].clip(max=n_keys)
        return Sees(self.query[start:end], self.key[:n_keys], self.causal, self.window, pictures, within)

    def ranges(self) -> np.ndarray:
        """Return (T, 2): the first and the behind-last key that each query sees; drawn, they are `hidden`.

        Raises ValueError where a query need not see a range: keys out of order, text or a hole inside a picture."""
        if (np.diff(self.key) < 0).any():
            raise ValueError("sees: key: orders fall, expected orders that rise")
        first, end = np.zeros(len(self.query), np.intp), np.full(len(self.query), len(self.key), np.intp)
        if self.window is not None:
            first = np.searchsorted(self.key, self.query - self.window, "right")
        if self.causal:
            end = np.searchsorted(self.key, self.query, "right")
        if self.causal and self.pictures is not None:
            end = np.maximum(end, _ends_of_pictures(*self.pictures, end))
        if self.within is not None:
            first, end = np.maximum(first, self.within[:, 0]), np.minimum(end, self.within[:, 1])
        return np.stack([first, end], 1)

    def reach(self, block: int) -> np.ndarray:
        """Return (ceil(T / block), 2): the first and the behind-last key that any query of a block sees."""
        ranges, starts = self.ranges(), np.arange(0, len(self.query), block)
        return np.stack([np.minimum.reduceat(ranges[:, 0], starts), np.maximum.reduceat(ranges[:, 1], starts)], 1)

    def common(self, block: int) -> np.ndarray:
        """Return (ceil(T / block), 2): the first and the behind-last key that every query of a block sees."""
        ranges, starts = self.ranges(), np.arange(0, len(self.query), block)
        first = np.maximum.reduceat(ranges[:, 0], starts)
        return np.stack([first, np.maximum(np.minimum.reduceat(ranges[:, 1], starts), first)], 1)


def groups(numbers: np.ndarray) -> np.ndarray:
    """Return the range of the group that each position is in.  numbers of groups, which never fall (n,) -> (n, 2)"""
    return np.stack([np.searchsorted(numbers, numbers, side) for side in ("left", "right")], 1)


def _ends_of_pictures(ours: np.ndarray, theirs: np.ndarray, past: np.ndarray) -> np.ndarray:
    """Return the index behind each query's picture, 0 without one.  (T,) (S,), index behind the query (T,) -> (T,)"""
    last = np.flatnonzero(np.diff(theirs, append=-1))  # of each run of one number
    last = last[theirs[last] >= 0]
    if len(np.unique(theirs[last])) < len(last):
        raise ValueError("sees: pictures: keys of one picture stand apart, expected one after the other")
    if ((ours >= 0) & ((past == 0) | (theirs[past - 1] != ours))).any():
        raise ValueError("sees: pictures: a query stands outside the keys of its picture")
    ends = np.zeros(max(ours.max(), theirs.max()) + 2, np.intp)  # the last is that of -1
    ends[theirs[last]] = last + 1
    return ends[ours]
