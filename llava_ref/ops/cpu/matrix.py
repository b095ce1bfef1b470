"""Multiply by a matrix as it lies in the file: `arrays.Matrix` over the file's own blocks.

T rows of x, N rows of the matrix, K its columns.
"""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from ...gguf.file import TensorView
from ...kernels.cpu import rows
from ...kernels.cpu.launch import run
from ..arrays import Linear, Matrix
from ..torch_quants import raw


class CpuMatrix:
    """A matrix of a type that the kernels read. Nothing is copied: its pages are the file's."""

    def __init__(self, view: TensorView, linears: Callable[[Tensor, Sequence[Linear]], tuple[Tensor, ...]]) -> None:
        self.name, self.shape, self.type = view.name, view.shape, view.type
        self.N, self.K = view.shape[0], prod(view.shape[1:])
        self._blocks, self._linears = raw(view, "cpu"), linears
        self.address = self._blocks.data_ptr()

    def product(self, x: Tensor) -> Tensor:
        return self._linears(x, (Linear(self),))[0]

    def rows(self, ids: Sequence[int]) -> Tensor:
        wanted, out = torch.tensor(ids, dtype=torch.int64), torch.empty((len(ids), self.K))
        run(rows.rows(self.type, self.address, self.K, wanted.data_ptr(), len(ids), out.data_ptr(), 1.0), threads=1)
        return out


def matrix_of(w: Linear | Matrix) -> CpuMatrix:
    """Return a matrix of this backend as what it is."""
    matrix = w.weight if isinstance(w, Linear) else w
    assert isinstance(matrix, CpuMatrix)
    return matrix
