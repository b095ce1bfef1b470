"""Evaluate every operation in float64, straight from its definition in kernels/reference.py.

A backend is checked against this, so nothing of a backend is used here. The letters are those of `protocol`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..gguf.file import TensorView
from ..kernels import reference
from .arrays import KV, Activation, Cache, Linear, Norm, Pairs
from .kv import CacheLength
from .sees import Sees
from .step import StepPlan, one_by_one
from .torch_quants import dequantize


class Definition:
    """Implement `protocol.Ops` on the CPU in float64."""

    name = "definition"
    device = "cpu"
    joined_rows = 0
    together = 1
    step_together = staticmethod(one_by_one)

    def kernels(self) -> str:
        return "torch, float64"

    @contextmanager
    def running(self, rows: int, weights: int) -> Iterator[None]:
        yield

    def matrix(self, view: TensorView) -> "WideMatrix":
        return WideMatrix(view)

    def vector(self, view: TensorView) -> Tensor:
        return dequantize(view, "cpu").double()

    def array(self, x: np.ndarray) -> Tensor:
        return torch.tensor(x, dtype=torch.float64)

    def numpy(self, x: Tensor) -> np.ndarray:
        return x.numpy()

    def linear(self, x: Tensor, w: Linear) -> Tensor:
        y: Tensor = w.weight.product(x)
        return y if w.bias is None else y + w.bias

    def linears(self, x: Tensor, ws: Sequence[Linear]) -> tuple[Tensor, ...]:
        return tuple(self.linear(x, w) for w in ws)

    def patches(self, x: Tensor, w: Linear) -> Tensor:
        return self.linear(reference.squares(x, w.weight.shape[-1]), w)

    def depthwise(self, x: Tensor, kernel: Tensor, places: np.ndarray) -> Tensor:
        return reference.depthwise(x, kernel, torch.from_numpy(places).to(x.device))

    def layer_norm(self, x: Tensor, w: Norm, eps: float) -> Tensor:
        return reference.layer_norm(x, w.weight, w.bias, eps)

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        return reference.rms_norm(x, gain, eps)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        y: Tensor = getattr(reference, kind)(x)
        return y

    def clamp(self, x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    def gated(self, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        return self.activation(gate, kind) * up

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor, pairs: Pairs) -> Tensor:
        return reference.rope(x, cos, sin, pairs)

    def cache(self, n_layer: int, n_head_kv: int, head_size: int, limit: int) -> "WideCache":
        return WideCache(n_layer, torch.zeros((0, n_head_kv, head_size), dtype=torch.float64), limit)

    def plan(self, sees: Sees) -> Tensor:
        return torch.zeros(sees.hidden().shape, dtype=torch.float64).masked_fill(
            torch.from_numpy(sees.hidden()), -torch.inf
        )

    def attention(self, q: Tensor, kv: KV, scale: float, plan: Tensor) -> Tensor:
        return reference.attention(q, kv.keys, kv.values, scale, plan)

    def attention_weights(self, q: Tensor, kv: KV, scale: float, plan: Tensor) -> Tensor:
        return reference.attention_weights(q, kv.keys, scale, plan)

    def attention_values(self, weights: Tensor, kv: KV) -> Tensor:
        return reference.attention_values(weights, kv.values)

    def concat(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(rows))

    def all_finite(self, x: Tensor) -> bool:
        return bool(torch.isfinite(x).all())

    def replay(self, f: Callable[[Tensor], Tensor], x: np.ndarray) -> Tensor:
        return f(self.array(x))

    def stepper(self, plan: StepPlan, cache: Cache) -> None:
        return None


class WideMatrix:
    """A matrix in float64. The weights are those of `torch_quants`, float32 by definition."""

    def __init__(self, view: TensorView) -> None:
        self.name, self.shape, self.type = view.name, view.shape, view.type
        self._weights = dequantize(view, "cpu").double().reshape(view.shape[0], -1)

    def product(self, x: Tensor) -> Tensor:
        return reference.linear(x, self._weights)

    def rows(self, ids: Sequence[int]) -> Tensor:
        return self._weights[list(ids)]


class WideCache(CacheLength):
    """Keys and values in float64, one tensor a layer."""

    def __init__(self, n_layer: int, empty: Tensor, limit: int) -> None:
        super().__init__(limit)
        self._kept = [(empty, empty)] * n_layer

    def append(self, layer: int, k: Tensor, v: Tensor) -> KV:
        keys, values = (torch.cat((old[: self.length], x)) for old, x in zip(self._kept[layer], (k, v), strict=True))
        self._kept[layer] = keys, values
        return KV(keys, values)
