"""Show every product of a pass, with the matrix and its input, to a function."""

from collections.abc import Callable, Sequence
from typing import cast

from .over import Over
from .protocol import Array, Linear, Ops

OnProduct = Callable[[Linear, Array, Array], None]
"""Given a matrix, its input and its output. The input of patches is the picture (3, Y, X)."""


def probed(ops: Ops, on_product: OnProduct) -> Ops:
    """Return `ops` that show each product to `on_product`."""
    return cast(Ops, _ProbeOps(ops, on_product))


class _ProbeOps(Over):
    def __init__(self, inner: Ops, on_product: OnProduct) -> None:
        super().__init__(inner)
        self._on_product = on_product

    def linear(self, x: Array, w: Linear) -> Array:
        return self._shown(w, x, self._inner.linear(x, w))

    def linears(self, x: Array, ws: Sequence[Linear]) -> tuple[Array, ...]:
        return tuple(self._shown(w, x, y) for w, y in zip(ws, self._inner.linears(x, ws), strict=True))

    def patches(self, x: Array, w: Linear) -> Array:
        return self._shown(w, x, self._inner.patches(x, w))

    def _shown(self, w: Linear, x: Array, y: Array) -> Array:
        self._on_product(w, x, y)
        return y
