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
