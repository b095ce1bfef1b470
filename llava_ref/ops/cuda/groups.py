"""Lay matrices that have one input below one another, so that one launch multiplies by all of them.

T rows of x, N rows of a matrix, K its columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from ...kernels.triton.activations import Activations
from ..arrays import Linear
from .matrix import CudaMatrix, matrix_of
from .stores import Store, Terms, below, kind


@dataclass(frozen=True, slots=True)
class Stacked:
    """One launch: a store, and a bias for all its rows where one of the matrices has a bias."""

    store: Store
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Group:
    """Several linear maps of one input, as few products as their types allow."""

    products: tuple[Stacked, ...]
    ends: tuple[int, ...]  # the column behind each map's

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """Return the columns of each map.  (T, sum of N) -> (T, N) each"""
        return tuple(y[:, start:end] for start, end in pairwise((0, *self.ends)))

    def matvec(self, x: Activations, out: Tensor | None = None, *, add: Tensor | None = None) -> Tensor:
        """Multiply a few rows.  (T, K) -> (T, sum of N) float32"""
        if len(self.products) == 1:
            return self.products[0].store.matvec(x, out, bias=self.products[0].bias, add=add)
        found = []
        for product, columns in self._columns():
            place, added = (None if y is None else y[:, columns] for y in (out, add))
            found.append(product.store.matvec(x, place, bias=product.bias, add=added))
        return torch.cat(found, 1) if out is None else out

    def product(self, x: Tensor) -> Tensor:
        """Multiply many rows.  (T, K) -> (T, sum of N), float32"""
        found = []
        for product in self.products:
            y = product.store.product(x)
            found.append(y if product.bias is None else y.add_(product.bias))
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def _columns(self) -> list[tuple[Stacked, slice]]:
        ends = accumulate(product.store.shape[0] for product in self.products)
        spans = pairwise((0, *ends))
        return [(product, slice(*span)) for product, span in zip(self.products, spans, strict=True)]


class Groups:
    """The groups of a model, each laid out when its matrices are first used together."""

    def __init__(self, terms: Terms) -> None:
        self._terms, self._known = terms, dict[tuple[int, ...], tuple[tuple[Linear, ...], Group]]()

    def of(self, ws: Sequence[Linear]) -> Group:
        key = tuple(id(w.weight) for w in ws)
        if key not in self._known:  # the maps are kept so that no other matrix gets the id of one
            self._known[key] = tuple(ws), self._laid_out(ws)
        return self._known[key][1]

    def _laid_out(self, ws: Sequence[Linear]) -> Group:
        products = []
        for _, run in groupby(ws, lambda w: kind(matrix_of(w.weight).store)):
            same = list(run)
            products.append(Stacked(self._stacked([matrix_of(w.weight) for w in same]), _bias(same)))
        return Group(tuple(products), tuple(accumulate(w.weight.shape[0] for w in ws)))

    def _stacked(self, matrices: Sequence[CudaMatrix]) -> Store:
        """Return one store of several matrices, which from now on are parts of it."""
        if len(matrices) == 1:
            return matrices[0].store
        whole, first = below([m.store for m in matrices], self._terms), 0
        for matrix in matrices:
            matrix.store = whole.part(first, first + matrix.shape[0])
            first += matrix.shape[0]
        return whole


def _bias(ws: Sequence[Linear]) -> Tensor | None:
    """Return the biases in a row, zeros where a map has none; None if no map has one."""
    given = [w.bias for w in ws if w.bias is not None]
    if not given:
        return None
    return torch.cat([given[0].new_zeros(w.weight.shape[0]) if w.bias is None else w.bias for w in ws])
