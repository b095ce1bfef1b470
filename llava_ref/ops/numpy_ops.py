"""Compute the operations in numpy alone, float32. The definitions are in kernels/reference.py, with the same
letters."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache

import numpy as np

from ..gguf.file import TensorView
from .kv import GrowingCache
from .numpy_quants import dequantize, dequantize_rows
from .protocol import KV, Activation, Cache, Linear, Norm, Pairs
from .sees import Sees
from .step import StepPlan, one_by_one
from .threads import blas, one_blas_thread, processors, worth
from .weight_budget import Dequantised, WeightBudget

F32 = np.ndarray


def most() -> int:
    """Return how many threads a pass may use."""
    return min(processors(), blas()[1])


class NumpyOps:
    """Implement `protocol.Ops` on the CPU with numpy. Nothing here imports torch."""

    name = "numpy"
    device = "cpu"
    joined_rows = 0
    together = 1
    step_together = staticmethod(one_by_one)

    def __init__(self, threads: int | None, budget: int) -> None:
        self._budget = WeightBudget(budget)
        self._threads, self._most = threads, most()
        self._pool = ThreadPoolExecutor(threads or self._most, "product")  # has no thread before it has work

    def kernels(self) -> str:
        return f"numpy {np.__version__}, float32"

    def running(self, rows: int, weights: int) -> AbstractContextManager[None]:
        """Keep BLAS to one thread: `product` has threads of its own, which sleep while they wait."""
        return one_blas_thread()

    def product(self, x: F32, w: F32) -> F32:
        """Return x w^T, (T, K) (N, K) -> (T, N), with a share of the columns for each thread."""
        parts = self._threads or worth(len(x), w.size, self._most)
        if parts == 1:
            return np.asarray(x @ w.T)
        y = np.empty((len(x), len(w)), np.float32)
        ends = [len(w) * i // parts for i in range(parts + 1)]

        def share(start: int, end: int) -> None:
            with np.errstate(all="ignore"):  # not taken over from the thread that waits
                np.matmul(x, w[start:end].T, out=y[:, start:end])

        list(self._pool.map(share, ends[:-1], ends[1:]))
        return y

    def matrix(self, view: TensorView) -> Dequantised[F32]:
        return Dequantised(view, dequantize, dequantize_rows, self.product, self._budget)

    def vector(self, view: TensorView) -> F32:
        return dequantize(view)

    def array(self, x: np.ndarray) -> F32:
        return np.array(x, np.float32, order="C")

    def numpy(self, x: F32) -> np.ndarray:
        return x

    def linear(self, x: F32, w: Linear) -> F32:
        y: F32 = w.weight.product(x)
        return y if w.bias is None else y + w.bias

    def linears(self, x: F32, ws: Sequence[Linear]) -> tuple[F32, ...]:
        return tuple(self.linear(x, w) for w in ws)

    def patches(self, x: F32, w: Linear) -> F32:
        (C, Y, X), P = x.shape, w.weight.shape[-1]
        return self.linear(x.reshape(C, Y // P, P, X // P, P).transpose(1, 3, 0, 2, 4).reshape(-1, C * P * P), w)

    def depthwise(self, x: F32, kernel: F32, places: np.ndarray) -> F32:
        padded = np.concatenate((x, np.zeros_like(x[:1])))  # row -1
        around: F32 = (padded[places] * kernel.T[:, None]).sum(0)
        return around

    def layer_norm(self, x: F32, w: Norm, eps: float) -> F32:
        h = x - x.mean(-1, keepdims=True)
        y = h / np.sqrt(np.square(h).mean(-1, keepdims=True) + np.float32(eps)) * w.weight
        return np.asarray(y if w.bias is None else y + w.bias)

    def rms_norm(self, x: F32, gain: F32, eps: float) -> F32:
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * gain

    def activation(self, x: F32, kind: Activation) -> F32:
        if kind == "gelu_erf":
            return (0.5 * x * (1 + erf(x / math.sqrt(2)))).astype(np.float32)
        if kind == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        if kind == "gelu_quick":
            return x * _sigmoid(1.702 * x)
        return x * _sigmoid(x)

    def clamp(self, x: F32, low: float, high: float) -> F32:
        return x.clip(low, high)

    def rope(self, x: F32, cos: F32, sin: F32, pairs: Pairs) -> F32:
        c, s = cos[:, None, :], sin[:, None, :]
        if pairs == "halves":
            first, second = np.split(x, 2, -1)
            return np.concatenate((first * c - second * s, first * s + second * c), -1)
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack((even * c - odd * s, even * s + odd * c), -1).reshape(x.shape)

    def gated(self, gate: F32, up: F32, kind: Activation) -> F32:
        return self.activation(gate, kind) * up

    def cache(self, n_layer: int, n_head_kv: int, head_size: int, limit: int) -> GrowingCache:
        return GrowingCache(n_layer, n_head_kv, head_size, limit, lambda shape: np.zeros(shape, np.float32))

    def plan(self, sees: Sees) -> F32 | None:
        mask = sees.mask()
        return None if mask is None else mask.astype(np.float32)

    def attention(self, q: F32, kv: KV, scale: float, plan: F32 | None) -> F32:
        return self.attention_values(self.attention_weights(q, kv, scale, plan), kv)

    def attention_weights(self, q: F32, kv: KV, scale: float, plan: F32 | None) -> F32:
        k: F32 = kv.keys
        (T, H, dh), Hkv = q.shape, k.shape[1]
        queries = q.reshape(T, Hkv, H // Hkv, dh).transpose(1, 2, 0, 3)  # (Hkv, H/Hkv, T, dh)
        scores = queries @ k.transpose(1, 2, 0)[:, None] * np.float32(scale)  # (Hkv, H/Hkv, T, S)
        if plan is not None:
            scores += plan
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return (scores / scores.sum(-1, keepdims=True)).reshape(H, T, -1)

    def attention_values(self, weights: F32, kv: KV) -> F32:
        (H, T, S), (_, Hkv, dh) = weights.shape, kv.values.shape
        y = weights.reshape(Hkv, H // Hkv, T, S) @ kv.values.transpose(1, 0, 2)[:, None]  # (Hkv, H/Hkv, T, dh)
        return np.asarray(y.transpose(2, 0, 1, 3).reshape(T, H * dh))

    def concat(self, rows: Sequence[F32]) -> F32:
        return np.concatenate(rows)

    def all_finite(self, x: F32) -> bool:
        return bool(np.isfinite(x).all())

    def replay(self, f: Callable[[F32], F32], x: np.ndarray) -> F32:
        return f(self.array(x))

    def stepper(self, plan: StepPlan, cache: Cache) -> None:
        return None


def _sigmoid(x: F32) -> F32:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        return 1 / (1 + np.exp(-x))


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function to 1e-13, float64: numpy has none. Fourth-order Taylor steps from a table of
    `math.erf`."""
    table, step = _erf_table(), 1 / 128
    x = np.clip(np.asarray(x, np.float64), -6, 6)  # 1 - erf(6) is 2e-17
    nearest = np.rint(np.nan_to_num(x) / step)
    x0 = nearest * step
    d = x - x0  # NaN stays NaN
    slope = 2 / math.sqrt(math.pi) * np.exp(-x0 * x0)
    bend = d * (1 + d * (-x0 + d * ((2 * x0 * x0 - 1) / 3 + d * x0 * (3 - 2 * x0 * x0) / 6)))
    return table[(nearest + 6 / step).astype(np.int64)] + slope * bend


@cache
def _erf_table() -> np.ndarray:
    return np.array([math.erf(i / 128) for i in range(-6 * 128, 6 * 128 + 1)])
