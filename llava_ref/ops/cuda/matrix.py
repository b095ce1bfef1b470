"""A matrix of a file on the device: `arrays.Matrix` over a store."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...gguf.file import TensorView
from ...kernels.triton.activations import quantise
from ..arrays import Matrix
from .stores import FEW, Store, Terms, store


class CudaMatrix:
    """A matrix that is multiplied by kernels. Its store may become part of a larger one."""

    def __init__(self, view: TensorView, device: str, terms: Terms) -> None:
        self.name, self.shape, self.type = view.name, view.shape, view.type
        self.store: Store = store(view, device, terms)
        self._device = device

    def product(self, x: Tensor) -> Tensor:
        if len(x) <= FEW:
            return self.store.matvec(quantise(x))
        return self.store.product(x)

    def rows(self, ids: Sequence[int]) -> Tensor:
        return self.store.rows(torch.tensor(ids, dtype=torch.int32, device=self._device))


def matrix_of(matrix: Matrix) -> CudaMatrix:
    """Return a matrix of this backend as what it is."""
    assert isinstance(matrix, CudaMatrix)
    return matrix


def store_of(matrix: Matrix) -> Store:
    return matrix_of(matrix).store
