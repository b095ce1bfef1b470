"""Several units of a sequence in one pass, each with the arithmetic that it has by itself.

A probe may want to see a prompt whole. But what a product rounds depends on how many rows it has, and attention over
all rows at once takes memory by the square of their number. So only the arrays are whole: products and attention are
done unit by unit, and every bit is the one that a pass a unit would give.

T rows of the pass, S positions so far, D or K width in, N width out, H query heads, Hkv key/value heads, dh head size.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

from ..ops.protocol import Array, Ops, Weight


def by_units(ops: Ops, first: int, ends: Sequence[int], weights: int) -> Ops:
    """Return `ops` for a pass from position `first` on, whose units end behind the rows `ends`.

    `weights`: numbers of the largest matrix, for `Ops.running`."""
    return ops if len(ends) == 1 else cast(Ops, _ByUnits(ops, first, ends, weights))


class _ByUnits:
    """`ops.protocol.Ops` over another."""

    def __init__(self, inner: Ops, first: int, ends: Sequence[int], weights: int) -> None:
        self._inner, self._first, self._weights = inner, first, weights
        self._spans = list(pairwise([0, *ends]))

    def __getattr__(self, name: str) -> Any:
        """Everything else treats each row by itself."""
        return getattr(self._inner, name)

    def linear(self, x: Array, w: Weight, b: Weight | None = None) -> Array:
        return self._joined(lambda start, end: self._inner.linear(x[start:end], w, b))

    def attention(self, q: Array, k: Array, v: Array, scale: float, mask: Array | None) -> Array:
        def unit(start: int, end: int) -> Array:
            seen = self._first + end
            return self._inner.attention(q[start:end], k[:seen], v[:seen], scale, self._mask(mask, start, end))

        return self._joined(unit)

    def attention_weights(self, q: Array, k: Array, scale: float, mask: Array | None) -> Array:
        """(H, T, S): 0 where a unit does not reach."""
        weights = self._inner.zeros((q.shape[1], q.shape[0], k.shape[0]))
        for start, end in self._spans:
            seen = self._first + end
            with self._inner.running(end - start, self._weights):
                found = self._inner.attention_weights(q[start:end], k[:seen], scale, self._mask(mask, start, end))
            weights[:, start:end, :seen] = found
        return weights

    def attention_values(self, weights: Array, v: Array) -> Array:
        """Over all positions for a unit whose weights were changed to look ahead of it."""

        def unit(start: int, end: int) -> Array:
            ahead = self._inner.numpy(weights[:, start:end, self._first + end :]).any()
            seen = v.shape[0] if ahead else self._first + end
            return self._inner.attention_values(weights[:, start:end, :seen], v[:seen])

        return self._joined(unit)

    def _joined(self, unit: Callable[[int, int], Array]) -> Array:
        found = []
        for start, end in self._spans:
            with self._inner.running(end - start, self._weights):
                found.append(unit(start, end))
        return self._inner.concat(found)

    def _mask(self, mask: Array | None, start: int, end: int) -> Array | None:
        return None if mask is None else mask[start:end, : self._first + end]
