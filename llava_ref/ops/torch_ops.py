"""The operations in torch, float32, on any device; each is its definition in kernels/reference.py."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..errors import ParameterError
from ..gguf.file import TensorView
from ..kernels import reference
from .protocol import Activation
from .threads import processors, worth
from .torch_quants import dequantize, dequantize_rows
from .weight_budget import Budget, CachedWeight

TorchWeight = CachedWeight[Tensor]
MOST = min(processors(), torch.get_num_threads())
"""Threads that were allowed when the first model was loaded: OMP_NUM_THREADS and torch.set_num_threads count."""


class TorchOps:
    """`ops.protocol.Ops` with torch. Weights are dequantised on the device they are used on."""

    name = "torch"

    def __init__(self, device: str, threads: int | None, budget: int) -> None:
        if device not in ("cpu", "cuda"):
            raise ParameterError("device", repr(device), "unknown, expected 'cpu' or 'cuda'")
        if device == "cuda" and not torch.cuda.is_available():
            raise ParameterError("device", "'cuda'", "torch finds no CUDA device here")
        self.device = device
        self._budget = Budget(budget)
        self._threads = threads

    @contextmanager
    def running(self, rows: int, weights: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or worth(rows, weights, MOST))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def weight(self, view: TensorView) -> TorchWeight:
        return CachedWeight(view, lambda v: dequantize(v, self.device), self._budget)

    def array(self, x: np.ndarray) -> Tensor:
        return torch.tensor(x, dtype=torch.float32, device=self.device)

    def numpy(self, x: Tensor) -> np.ndarray:
        return x.cpu().numpy()

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def linear(self, x: Tensor, w: TorchWeight, b: TorchWeight | None = None) -> Tensor:
        return reference.linear(x, w.array(), _array(b))

    def embed(self, w: TorchWeight, ids: Sequence[int]) -> Tensor:
        return dequantize_rows(w.view, ids, self.device)

    def patches(self, x: Tensor, w: TorchWeight, b: TorchWeight | None = None) -> Tensor:
        return reference.patches(x, w.array(), _array(b))

    def layer_norm(self, x: Tensor, w: TorchWeight, b: TorchWeight | None, eps: float) -> Tensor:
        return reference.layer_norm(x, w.array(), _array(b), eps)

    def rms_norm(self, x: Tensor, w: TorchWeight, eps: float) -> Tensor:
        return reference.rms_norm(x, w.array(), eps)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        if kind == "gelu_erf":
            return reference.gelu_erf(x)
        if kind == "gelu_tanh":
            return reference.gelu_tanh(x)
        if kind == "gelu_quick":
            return reference.gelu_quick(x)
        return reference.silu(x)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return reference.rope(x, cos, sin)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
        return reference.attention(q, k, v, scale, mask)

    def attention_weights(self, q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
        return reference.attention_weights(q, k, scale, mask)

    def attention_values(self, weights: Tensor, v: Tensor) -> Tensor:
        return reference.attention_values(weights, v)

    def add(self, x: Tensor, w: TorchWeight) -> Tensor:
        return x + w.array()

    def concat(self, parts: Sequence[Tensor | TorchWeight]) -> Tensor:
        return torch.cat([p.array()[None] if isinstance(p, CachedWeight) else p for p in parts])

    def all_finite(self, x: Tensor) -> bool:
        return bool(torch.isfinite(x).all())

    def uncached(self) -> "TorchOps":
        return self


def _array(w: TorchWeight | None) -> Tensor | None:
    return None if w is None else w.array()
