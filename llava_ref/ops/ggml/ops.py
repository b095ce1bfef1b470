"""ggml's CPU arithmetic over another backend: what ggml rounds is rounded, then the other backend computes in float32.

So a difference from llama.cpp that is left is a bug, or the order of a sum. docs/ggml.md lists what is followed and
how far off each product is; the letters are those of `ops`. Sources: llama.cpp b10605, in each module ggml_*.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ...errors import ParameterError
from ...gguf.file import TensorView
from ...profiles import Quirks
from ..protocol import Activation, Array, Ops, Weight
from ..threads import one_blas_thread
from . import gelu as ggml_gelu
from .attention import one_by_one
from .rounding import ROUNDING, half, minima, rounded, sum_errors

TILE = 64  # queries from which flash attention computes in float32 tiles (ggml_fa_tile_config)


class GgmlOps:
    """`ops.protocol.Ops`. Rounding is done on the host, in numpy, for every backend alike."""

    def __init__(self, inner: Ops, quirks: Quirks) -> None:
        self._inner, self._quirks = inner, quirks
        self.name, self.device = inner.name, inner.device
        self._flash = quirks.flash_attention == "on"
        self._half_cache = self._flash or quirks.kv_cache == "f16"  # flash attention casts what it is given

    def weight(self, view: TensorView) -> Weight:
        """A patch kernel is rounded to float16 at once. ParameterError for a type that ggml cannot multiply by."""
        if view.type not in (ROUNDING if len(view.shape) < 4 else ("F32", "F16")):
            problem = f"cannot run {view.name}: ggml's CPU backend has no kernel for {view.type} there"
            raise ParameterError("precision", "'ggml'", problem)
        if len(view.shape) == 4 and view.type == "F32":
            data = np.frombuffer(view.data, np.float32).astype(np.float16)
            view = TensorView(view.name, "F16", view.shape, memoryview(bytearray(data.tobytes())))
        return self._inner.weight(view)

    def linear(self, x: Array, w: Weight, b: Weight | None = None) -> Array:
        """ggml-cpu.c:1254-1390: activations become the type that the weights' kernel wants, row by row."""
        view: TensorView = w.view
        rounding = ROUNDING[view.type]
        if rounding == "F32":
            return self._inner.linear(x, w, b)
        host = self.numpy(x)
        y = self._inner.linear(self.array(rounded(host, rounding)), w, b)
        if rounding == "Q8_1":
            y = y + self.array(sum_errors(host) @ minima(view.data, view.type, view.shape[0]).T)
        return y

    def patches(self, x: Array, w: Weight, b: Weight | None = None) -> Array:
        """ggml.c:4690-4712: both sides of a convolution are float16."""
        return self._inner.patches(self._half(x), w, b)

    def activation(self, x: Array, kind: Activation) -> Array:
        if kind == "gelu_tanh":
            return self.array(ggml_gelu.gelu_tanh(self.numpy(x)))
        if kind == "gelu_quick":
            return self.array(ggml_gelu.gelu_quick(self.numpy(x)))
        return self._inner.activation(x, kind)

    def attention(self, q: Array, k: Array, v: Array, scale: float, mask: Array | None) -> Array:
        if self._flash and not _in_tiles(q):
            rows = mask if mask is None else self.numpy(mask)
            q, k, v = (half(self.numpy(x)) for x in (q, k, v))
            return self.array(one_by_one(q, k, v, scale, rows))
        return self.attention_values(self.attention_weights(q, k, scale, mask), v)

    def attention_weights(self, q: Array, k: Array, scale: float, mask: Array | None) -> Array:
        """A product with a float16 cache has float16 queries, but in tiles of flash attention."""
        if self._half_cache:
            q, k = q if self._flash and _in_tiles(q) else self._half(q), self._half(k)
        return self._inner.attention_weights(q, k, scale, mask)

    def attention_values(self, weights: Array, v: Array) -> Array:
        """The weights of flash attention are never float16."""
        if self._half_cache:
            weights, v = weights if self._flash else self._half(weights), self._half(v)
        return self._inner.attention_values(weights, v)

    def _half(self, x: Array) -> Array:
        return self.array(half(self.numpy(x)))

    def uncached(self) -> "GgmlOps":
        return GgmlOps(self._inner, replace(self._quirks, kv_cache="f32"))

    @contextmanager
    def running(self, rows: int, weights: int) -> Iterator[None]:
        with one_blas_thread(), self._inner.running(rows, weights):
            yield

    # The rest is float32 in ggml too.

    def array(self, x: np.ndarray) -> Array:
        return self._inner.array(x)

    def numpy(self, x: Array) -> np.ndarray:
        return self._inner.numpy(x)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return self._inner.zeros(shape)

    def embed(self, w: Weight, ids: Sequence[int]) -> Array:
        return self._inner.embed(w, ids)

    def layer_norm(self, x: Array, w: Weight, b: Weight | None, eps: float) -> Array:
        return self._inner.layer_norm(x, w, b, eps)

    def rms_norm(self, x: Array, w: Weight, eps: float) -> Array:
        return self._inner.rms_norm(x, w, eps)

    def rope(self, x: Array, cos: Array, sin: Array) -> Array:
        return self._inner.rope(x, cos, sin)

    def add(self, x: Array, w: Weight) -> Array:
        return self._inner.add(x, w)

    def concat(self, parts: Sequence[Array | Weight]) -> Array:
        return self._inner.concat(parts)

    def all_finite(self, x: Array) -> bool:
        return self._inner.all_finite(x)


def _in_tiles(q: Array) -> bool:
    return bool(q.shape[0] >= TILE)
