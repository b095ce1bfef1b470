"""Evaluate every operation in float64, by its definition in kernels/reference.py: what a backend is checked against."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..gguf.file import TensorView
from ..kernels import reference
from .kv import GrowingCache
from .torch_ops import TorchOps
from .torch_quants import dequantize, dequantize_rows
from .weight_budget import Dequantised, WeightBudget


class Definition(TorchOps):
    """Implement `protocol.Ops` on the CPU in float64. Weights are those of `torch_quants`, float32 by definition."""

    name = "definition"

    def __init__(self) -> None:
        super().__init__("cpu", None, 0)

    def matrix(self, view: TensorView) -> Dequantised[Tensor]:
        def whole(v: TensorView) -> Tensor:
            return dequantize(v, "cpu").double()

        def rows(v: TensorView, ids: Sequence[int]) -> Tensor:
            return dequantize_rows(v, ids, "cpu").double()

        return Dequantised(view, whole, rows, reference.linear, WeightBudget(0))

    def vector(self, view: TensorView) -> Tensor:
        return dequantize(view, "cpu").double()

    def array(self, x: np.ndarray) -> Tensor:
        return torch.tensor(x, dtype=torch.float64)

    def cache(self, n_layer: int, n_head_kv: int, head_size: int, limit: int) -> GrowingCache:
        return GrowingCache(n_layer, n_head_kv, head_size, limit, lambda shape: torch.zeros(shape, dtype=torch.float64))
