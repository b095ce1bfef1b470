"""Hold a matrix on the device in the form that its kernels read, and multiply by it.

T rows of x, N rows of the matrix, K its columns, F MLP width. A store may hold several matrices of a file, one below
the other, so that one launch multiplies by all of them. Up to `FEW` rows a kernel reads the packed weights, and x as
two 8-bit terms. More rows are a product of float16 summed in float32, with a copy of the weights where the memory
allows one: x is divided by 2^`SHIFT` and the copy multiplied by it, so that x may reach 4e6 where float16 ends at
65504. That is eight times closer to float32 than bfloat16. A file in F16 or BF16 is multiplied as it is, in its own
type.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from ...gguf.file import TensorView
from ...kernels import planes
from ...kernels.planes import LAYOUTS, Planes
from ...kernels.triton import dense, gates, matmul, matvec, rows
from ...kernels.triton.activations import Activations, quantise
from ..arrays import Activation
from ..torch_quants import PLAIN, decode, raw
from ..weight_budget import WeightBudget

Maybe = Tensor | None
SHIFT = 6
FEW = matvec.MOST  # rows of x that a matrix-vector kernel takes
FUSED = 64  # rows up to which unpacking weights inside the product reads less than the copy has


class Store(Protocol):
    """A matrix (N, K) on the device."""

    shape: tuple[int, int]

    def matvec(self, x: Activations, out: Maybe = None, *, bias: Maybe = None, add: Maybe = None) -> Tensor:
        """Return x w^T + bias + add for up to `FEW` rows.  (T, K) -> (T, N) float32"""
        ...

    def gated(self, x: Activations, kind: Activation, out: Activations) -> None:
        """Write activation(x gate^T) * (x up^T), where the store holds gate above up, (2 F, K).  -> (T, F)"""
        ...

    def product(self, x: Tensor) -> Tensor:
        """Return x w^T for more than `FEW` rows.  (T, K) -> (T, N), float32"""
        ...

    def rows(self, ids: Tensor, out: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        """Return rows by their numbers, which lie on the device, times `scale`.  (n,) int32 -> (n, K) float32"""
        ...

    def part(self, first: int, end: int) -> "Store":
        """Return rows first..end-1 of the matrix, as a view."""
        ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What every store of a model works under."""

    budget: WeightBudget  # of float16 copies
    dependent_launch: bool  # kernels may start before the one in front of them has ended


class _Copied:
    """A store that may have a float16 copy of its weights, times 2^SHIFT, for products with many rows."""

    shape: tuple[int, int]

    def __init__(self, terms: Terms, whole: "tuple[_Copied, int] | None" = None) -> None:
        self._terms, self._whole, self._pdl = terms, whole, terms.dependent_launch
        self._copy: Tensor | None = None

    def copy(self) -> Tensor | None:
        """Return the copy (N, K), made at its first use while the budget lasts; None where it does not."""
        if self._whole is not None:
            store, first = self._whole
            copy = store.copy()
            return None if copy is None else copy[first : first + self.shape[0]]
        if self._copy is None and self._terms.budget.take(2 * self.shape[0] * self.shape[1]):
            self._copy = self.converted()
        return self._copy

    def converted(self) -> Tensor:
        """Return the weights in float16, times 2^SHIFT.  (N, K)"""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        copy = self.copy()
        return _product(x, self.converted() if copy is None else copy, SHIFT)


class PlaneStore(_Copied):
    """A quantised matrix as planes."""

    def __init__(self, packed: Planes, terms: Terms, whole: "tuple[PlaneStore, int] | None" = None) -> None:
        super().__init__(terms, whole)
        self.planes, self.shape = packed, packed.shape

    def matvec(self, x: Activations, out: Maybe = None, *, bias: Maybe = None, add: Maybe = None) -> Tensor:
        return matvec.matvec(x, self.planes, out, bias=bias, add=add, pdl=self._pdl)

    def gated(self, x: Activations, kind: Activation, out: Activations) -> None:
        matvec.gated(x, self.planes, kind, out, pdl=self._pdl)

    def product(self, x: Tensor) -> Tensor:
        if len(x) <= FUSED or self.copy() is None:
            return matmul.matmul(x.contiguous(), self.planes)
        return super().product(x)

    def converted(self) -> Tensor:
        return rows.dense(self.planes, torch.float16, scale=1 << SHIFT)

    def rows(self, ids: Tensor, out: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return rows.rows(self.planes, ids, out, scale=scale)

    def part(self, first: int, end: int) -> "PlaneStore":
        return PlaneStore(self.planes.part(first, end), self._terms, (self, first))


class PlainStore(_Copied):
    """A matrix of float16, bfloat16 or float32."""

    def __init__(self, weights: Tensor, terms: Terms, whole: "tuple[PlainStore, int] | None" = None) -> None:
        super().__init__(terms, whole)
        self.weights, self.shape = weights, (weights.shape[0], weights.shape[1])

    def matvec(self, x: Activations, out: Maybe = None, *, bias: Maybe = None, add: Maybe = None) -> Tensor:
        return dense.matvec(x, self.weights, out, bias=bias, add=add, pdl=self._pdl)

    def gated(self, x: Activations, kind: Activation, out: Activations) -> None:
        dense.gated(x, self.weights, kind, out, pdl=self._pdl)

    def product(self, x: Tensor) -> Tensor:
        return super().product(x) if self.weights.dtype == torch.float32 else _product(x, self.weights, 0)

    def converted(self) -> Tensor:
        return _narrow(self.weights, torch.float16, -SHIFT)

    def rows(self, ids: Tensor, out: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return torch.mul(self.weights[ids].float(), scale, out=out)

    def part(self, first: int, end: int) -> "PlainStore":
        return PlainStore(self.weights[first:end], self._terms, (self, first))


class BlockStore(_Copied):
    """A matrix of a type that no kernel reads: the blocks of the file, dequantised at every use."""

    def __init__(
        self,
        blocks: Tensor,
        kind: str,
        shape: tuple[int, int],
        terms: Terms,
        whole: "tuple[BlockStore, int] | None" = None,
    ) -> None:
        super().__init__(terms, whole)
        self.blocks, self.kind, self.shape = blocks, kind, shape

    def matvec(self, x: Activations, out: Maybe = None, *, bias: Maybe = None, add: Maybe = None) -> Tensor:
        y = x.x[:, : self.shape[1]] @ decode(self.blocks, self.kind).T
        y = y if bias is None else y + bias
        y = y if add is None else y + add
        return y if out is None else out.copy_(y)

    def gated(self, x: Activations, kind: Activation, out: Activations) -> None:
        gate, up = self.matvec(x).chunk(2, -1)
        quantise(gates.gate(gate, up, kind), out)

    def converted(self) -> Tensor:
        return _narrow(decode(self.blocks, self.kind), torch.float16, -SHIFT)

    def rows(self, ids: Tensor, out: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return torch.mul(decode(self.blocks[ids], self.kind), scale, out=out)

    def part(self, first: int, end: int) -> "BlockStore":
        shape = (end - first, self.shape[1])
        return BlockStore(self.blocks[first:end], self.kind, shape, self._terms, (self, first))


def store(view: TensorView, device: str, terms: Terms) -> Store:
    """Put a matrix of a file onto the device: as planes where its type has them."""
    blocks, N = raw(view, device).reshape(view.shape[0], -1), view.shape[0]
    K = prod(view.shape[1:])
    if view.type in LAYOUTS:
        return PlaneStore(planes.pack(blocks, view.type, (N, K)), terms)
    if view.type in ("F32", "F16", "BF16"):
        return PlainStore(blocks.view(PLAIN[view.type]), terms)
    return BlockStore(blocks, view.type, (N, K), terms)


def kind(store: Store) -> object:
    """Return what must agree for two matrices to lie below one another; for blocks nothing is gained by it."""
    if isinstance(store, PlaneStore):
        return store.planes.type
    return store.weights.dtype if isinstance(store, PlainStore) else id(store)


def below(stores: Sequence[Store], terms: Terms) -> Store:
    """Return one store with the rows of all, which are of one `kind`, in new memory."""
    packed = [s.planes for s in stores if isinstance(s, PlaneStore)]
    if packed:
        return PlaneStore(planes.beside(packed), terms)
    return PlainStore(torch.cat([s.weights for s in stores if isinstance(s, PlainStore)]), terms)


def _product(x: Tensor, w: Tensor, shift: int) -> Tensor:
    """Return x w^T, x divided by 2^shift and rounded to the type of w; summed and left in float32.  (T, K) (N, K)"""
    return wide_product(_narrow(x, w.dtype, shift), w)


def wide_product(x: Tensor, w: Tensor) -> Tensor:
    """Return x w^T of 16-bit numbers, summed and left in float32.  (T, K) (N, K) -> (T, N)"""
    if x.device.type == "cuda":
        return torch.mm(x, w.T, out_dtype=torch.float32)
    return x.float() @ w.float().T


def _narrow(x: Tensor, dtype: torch.dtype, shift: int) -> Tensor:
    """Divide by 2^shift and round to `dtype`, in one pass."""
    return torch.mul(x, 2.0**-shift, out=torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format))
