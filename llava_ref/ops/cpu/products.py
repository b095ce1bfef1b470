"""Multiply rows by several matrices of one input, which is rounded once for all of them.

T rows of x, N rows of a matrix, K its columns. Up to `FEW` rows a kernel reads the file's blocks; more rows are a
product of matrices (`kernels/cpu/product.py`). Which of the two depends on T alone.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...kernels.cpu.activations import RoundedRows, quantise
from ...kernels.cpu.launch import Launch, run
from ...kernels.cpu.matvec import DENSE, FEW, matvec
from ...kernels.cpu.product import ManyRows
from ..arrays import Linear
from .matrix import matrix_of


class BlockProducts:
    """The products of a model, with at most so many threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.many = ManyRows(threads)

    def linears(self, x: Tensor, ws: Sequence[Linear]) -> tuple[Tensor, ...]:
        """Return x w^T + b for each.  (T, K) -> (T, N)"""
        x = x.contiguous()
        return self._few(x, ws) if len(x) <= FEW else self._many(x, ws)

    def _few(self, x: Tensor, ws: Sequence[Linear]) -> tuple[Tensor, ...]:
        out = tuple(torch.empty((len(x), matrix_of(w).N)) for w in ws)
        for stage in products(Operand(x), *zip(ws, out, strict=True)):
            run(*stage, threads=self.threads)
        return out

    def _many(self, x: Tensor, ws: Sequence[Linear]) -> tuple[Tensor, ...]:
        prepared, out = self.many.input(x), []
        for w in ws:
            m = matrix_of(w)
            y = self.many.product(m.type, m.address, m.N, m.K, prepared)
            out.append(y if w.bias is None else y.add_(w.bias))
        return tuple(out)


class Operand:
    """Rows of x (T, K), and the same rounded to 16 bits: what the kernels of few rows read."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.codes = x, RoundedRows.of(*x.shape)

    def launch(self) -> Launch:
        return quantise(self.x.data_ptr(), self.x.stride(0), self.codes, len(self.x))


def products(x: Operand, *maps: tuple[Linear, Tensor], add: Tensor | None = None) -> Iterator[Sequence[Launch]]:
    """Yield the stages that write x w^T + b + add into `out`, (T, N), for each (w, out); `add` may be `out`."""
    if any(matrix_of(w).type not in DENSE for w, _ in maps):
        yield [x.launch()]
    yield [_product(w, x, out, add) for w, out in maps]


def _product(w: Linear, x: Operand, out: Tensor, add: Tensor | None) -> Launch:
    m = matrix_of(w)
    addresses = (0 if y is None else y.data_ptr() for y in (w.bias, add))
    rows = x.x.data_ptr() if m.type in DENSE else x.codes
    return matvec(m.type, m.address, m.N, m.K, rows, len(x.x), out.data_ptr(), *addresses)
