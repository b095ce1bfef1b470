"""Raw blocks -> float32, in torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import quants
from ..gguf import TensorView


def dequantize(view: TensorView, device: str) -> Tensor:
    return torch.from_numpy(quants.dequantize(view)).to(device)


def dequantize_rows(view: TensorView, rows: Sequence[int], device: str) -> Tensor:
    return torch.from_numpy(quants.dequantize_rows(view, rows)).to(device)
