"""Compute as ggml's CPU backend does, over another backend: round what ggml rounds, then compute in float32.

So a difference from llama.cpp that is left is a bug, or the order of a sum. docs/ggml.md lists what is followed and
how far off each product is; the letters are those of `ops.protocol`. Sources: llama.cpp b10605, in each module here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from ...errors import ParameterError
from ...gguf.file import TensorView
from ..over import Over
from ..protocol import KV, Activation, Array, Cache, CacheType, Matrix, Ops, Plan
from ..sees import Sees
from ..threads import one_blas_thread
from . import gelu
from .attention import one_by_one
from .rounding import ROUNDING, half, minima, rounded, sum_errors

TILE = 64  # queries from which flash attention computes in float32 tiles (ggml_fa_tile_config)


def over(ops: Ops, kv_cache: CacheType, flash_attention: bool) -> Ops:
    """Return ggml's arithmetic over `ops`: with that type of cache, and its fused attention or not."""
    return cast(Ops, GgmlOps(ops, kv_cache, flash_attention))


class GgmlOps(Over):
    """Rounding is done on the host, in numpy, for every backend alike. What is not here is float32 in ggml too."""

    def __init__(self, inner: Ops, kv_cache: CacheType, flash_attention: bool) -> None:
        super().__init__(inner)
        self._kv_cache, self._flash = kv_cache, flash_attention

    def kernels(self) -> str:
        return f"{self._inner.kernels()}, activations rounded as ggml rounds them"

    def matrix(self, view: TensorView) -> Matrix:
        """Round a patch kernel to float16 at once. Raises ParameterError for a type that ggml cannot multiply by."""
        if view.type not in (ROUNDING if len(view.shape) < 4 else ("F32", "F16")):
            problem = f"cannot run {view.name}: ggml's CPU backend has no kernel for {view.type} there"
            raise ParameterError("precision", "'ggml'", problem)
        if len(view.shape) == 4 and view.type == "F32":  # ggml.c:4690-4712: both sides of a convolution are float16
            data = np.frombuffer(view.data, np.float32).astype(np.float16)
            view = TensorView(view.name, "F16", view.shape, memoryview(bytearray(data.tobytes())))
        return RoundedMatrix(self._inner, view)

    def depthwise(self, x: Array, kernel: Array, places: np.ndarray) -> Array:
        """Round the rows to float16, which files have the numbers of a channel in."""
        return self._inner.depthwise(self.array(half(self.numpy(x))), kernel, places)

    def activation(self, x: Array, kind: Activation) -> Array:
        if kind == "gelu_tanh":
            return self.array(gelu.gelu_tanh(self.numpy(x)))
        if kind == "gelu_quick":
            return self.array(gelu.gelu_quick(self.numpy(x)))
        return self._inner.activation(x, kind)

    def gated(self, gate: Array, up: Array, kind: Activation) -> Array:
        return self.activation(gate, kind) * up

    def cache(self, n_layer: int, n_head_kv: int, head_size: int, limit: int) -> Cache:
        cache = self._inner.cache(n_layer, n_head_kv, head_size, limit)
        if self._kv_cache == "f16":
            cache = HalfCache(cache, self._inner)
        return cache

    def plan(self, sees: Sees) -> Plan:
        """Plan a pass. The mask is drawn for attention key by key too, which computes on the host."""
        mask = sees.mask() if self._flash and len(sees.query) < TILE else None
        return HostPlan(self._inner.plan(sees), None if mask is None else mask.astype(np.float32))

    def attention(self, q: Array, kv: KV, scale: float, plan: Plan) -> Array:
        if self._flash:
            kv = self._halved(kv)
        if self._flash and not _in_tiles(q):
            keys, values = self.numpy(kv.keys), self.numpy(kv.values)
            return self.array(one_by_one(half(self.numpy(q)), keys, values, scale, plan.mask))
        return self.attention_values(self.attention_weights(q, kv, scale, plan), kv)

    def attention_weights(self, q: Array, kv: KV, scale: float, plan: Plan) -> Array:
        """Round the queries to float16 for a product with float16 keys, except in tiles of flash attention."""
        if self._flash or kv.type == "f16":
            q = q if self._flash and _in_tiles(q) else self._half(q)
            kv = self._halved(kv)
        return self._inner.attention_weights(q, kv, scale, plan.inner)

    def attention_values(self, weights: Array, kv: KV) -> Array:
        """Round the values to float16, and the weights with them; flash attention never rounds the weights."""
        if self._flash or kv.type == "f16":
            weights = weights if self._flash else self._half(weights)
            kv = self._halved(kv)
        return self._inner.attention_values(weights, kv)

    def _halved(self, kv: KV) -> KV:
        """Round keys and values to float16, unless the cache has done so."""
        return kv if kv.type == "f16" else KV(self._half(kv.keys), self._half(kv.values), "f16")

    def _half(self, x: Array) -> Array:
        return self.array(half(self.numpy(x)))

    @contextmanager
    def running(self, rows: int, weights: int) -> Iterator[None]:
        with one_blas_thread(), self._inner.running(rows, weights):
            yield


class RoundedMatrix:
    """A matrix whose product rounds its input as the kernel of its type does, row by row (ggml-cpu.c:1254-1390)."""

    def __init__(self, ops: Ops, view: TensorView) -> None:
        self._ops, self._matrix, self._data = ops, ops.matrix(view), view.data
        self.name, self.shape, self.type = view.name, view.shape, view.type

    def product(self, x: Array) -> Array:
        rounding = ROUNDING[self.type]
        if rounding == "F32":
            return self._matrix.product(x)
        host = self._ops.numpy(x)
        y = self._matrix.product(self._ops.array(rounded(host, rounding)))
        if rounding == "Q8_1":
            y = y + self._ops.array(sum_errors(host) @ minima(self._data, self.type, self.shape[0]).T)
        return y

    def rows(self, ids: Sequence[int]) -> Array:
        return self._matrix.rows(ids)


class HalfCache:
    """A cache that rounds what it stores to float16."""

    def __init__(self, inner: Cache, ops: Ops) -> None:
        self._inner, self._ops, self.lag = inner, ops, 0

    @property
    def length(self) -> int:
        return self._inner.length

    def append(self, layer: int, k: Array, v: Array) -> KV:
        k, v = (self._ops.array(half(self._ops.numpy(x))) for x in (k, v))
        return replace(self._inner.append(layer, k, v), type="f16")

    def advance(self, count: int) -> None:
        self._inner.advance(count)

    def truncate(self, length: int) -> None:
        self._inner.truncate(length)


@dataclass(frozen=True, slots=True)
class HostPlan:
    """The other backend's plan, and for attention key by key the mask (T, S) on the host."""

    inner: Plan
    mask: np.ndarray | None


def _in_tiles(q: Array) -> bool:
    return bool(q.shape[0] >= TILE)
