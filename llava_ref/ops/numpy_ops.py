"""The operations in numpy alone, float32; the definitions are those of kernels/reference.py, letters as there."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache

import numpy as np

from ..gguf.file import TensorView
from .numpy_quants import dequantize, dequantize_rows
from .protocol import Activation
from .threads import blas, one_blas_thread, processors, worth
from .weight_budget import Budget, CachedWeight

F32 = np.ndarray
NumpyWeight = CachedWeight[F32]


class NumpyOps:
    """`ops.protocol.Ops` on the CPU with numpy. Nothing here imports torch."""

    name = "numpy"
    device = "cpu"

    def __init__(self, threads: int | None, budget: int) -> None:
        self._budget = Budget(budget)
        self._threads, self._most = threads, min(processors(), blas()[1])
        self._pool = ThreadPoolExecutor(threads or self._most, "product")  # has no thread before it has work

    def running(self, rows: int, weights: int) -> AbstractContextManager[None]:
        """`product` has threads of its own, which sleep while they wait."""
        return one_blas_thread()

    def product(self, x: F32, w: F32) -> F32:
        """x w^T, (T, K) (N, K) -> (T, N), a share of the columns to each thread."""
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

    def weight(self, view: TensorView) -> NumpyWeight:
        return CachedWeight(view, dequantize, self._budget)

    def array(self, x: np.ndarray) -> F32:
        return np.array(x, np.float32)

    def numpy(self, x: F32) -> np.ndarray:
        return x

    def zeros(self, shape: tuple[int, ...]) -> F32:
        return np.zeros(shape, np.float32)

    def linear(self, x: F32, w: NumpyWeight, b: NumpyWeight | None = None) -> F32:
        y = self.product(x, w.array())
        return y if b is None else y + b.array()

    def embed(self, w: NumpyWeight, ids: Sequence[int]) -> F32:
        return dequantize_rows(w.view, ids)

    def patches(self, x: F32, w: NumpyWeight, b: NumpyWeight | None = None) -> F32:
        C, Y, X = x.shape
        D, _, P, _ = w.shape
        rows = x.reshape(C, Y // P, P, X // P, P).transpose(1, 3, 0, 2, 4).reshape(-1, C * P * P)
        y = self.product(rows, w.array().reshape(D, -1))
        return y if b is None else y + b.array()

    def layer_norm(self, x: F32, w: NumpyWeight, b: NumpyWeight | None, eps: float) -> F32:
        h = x - x.mean(-1, keepdims=True)
        y = h / np.sqrt(np.square(h).mean(-1, keepdims=True) + np.float32(eps)) * w.array()
        return y if b is None else y + b.array()

    def rms_norm(self, x: F32, w: NumpyWeight, eps: float) -> F32:
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * w.array()

    def activation(self, x: F32, kind: Activation) -> F32:
        if kind == "gelu_erf":
            return (0.5 * x * (1 + erf(x / math.sqrt(2)))).astype(np.float32)
        if kind == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        if kind == "gelu_quick":
            return x * _sigmoid(1.702 * x)
        return x * _sigmoid(x)

    def rope(self, x: F32, cos: F32, sin: F32) -> F32:
        even, odd = x[..., 0::2], x[..., 1::2]
        c, s = cos[:, None, :], sin[:, None, :]
        return np.stack((even * c - odd * s, even * s + odd * c), -1).reshape(x.shape)

    def attention(self, q: F32, k: F32, v: F32, scale: float, mask: F32 | None) -> F32:
        return self.attention_values(self.attention_weights(q, k, scale, mask), v)

    def attention_weights(self, q: F32, k: F32, scale: float, mask: F32 | None) -> F32:
        (T, H, dh), Hkv = q.shape, k.shape[1]
        queries = q.reshape(T, Hkv, H // Hkv, dh).transpose(1, 2, 0, 3)  # (Hkv, H/Hkv, T, dh)
        scores = queries @ k.transpose(1, 2, 0)[:, None] * np.float32(scale)  # (Hkv, H/Hkv, T, S)
        if mask is not None:
            scores += mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return (scores / scores.sum(-1, keepdims=True)).reshape(H, T, -1)

    def attention_values(self, weights: F32, v: F32) -> F32:
        (H, T, S), (_, Hkv, dh) = weights.shape, v.shape
        y = weights.reshape(Hkv, H // Hkv, T, S) @ v.transpose(1, 0, 2)[:, None]  # (Hkv, H/Hkv, T, dh)
        return y.transpose(2, 0, 1, 3).reshape(T, H * dh)

    def add(self, x: F32, w: NumpyWeight) -> F32:
        return x + w.array()

    def concat(self, parts: Sequence[F32 | NumpyWeight]) -> F32:
        return np.concatenate([p.array()[None] if isinstance(p, CachedWeight) else p for p in parts])

    def all_finite(self, x: F32) -> bool:
        return bool(np.isfinite(x).all())

    def uncached(self) -> "NumpyOps":
        return self


def _sigmoid(x: F32) -> F32:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        return 1 / (1 + np.exp(-x))


def erf(x: np.ndarray) -> np.ndarray:
    """The error function to 1e-13, float64: numpy has none. Fourth-order Taylor steps from a table of `math.erf`."""
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
