"""The arithmetic a forward pass may use. A backend is a class with these methods; a model file imports only this.

T, S positions, D or K width in, N width out, H query heads, Hkv key/value heads, dh head size, V vocabulary.
Arrays are float32, opaque, and support `+ - * [] .shape .reshape(...)` and item assignment; nothing else is assumed.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import numpy as np

from ..gguf.file import TensorView

Array = Any  # numpy.ndarray or torch.Tensor, float32
Weight = Any  # a backend's own holder of a parameter: raw blocks until used; a model may only ask for its `.shape`
Activation = Literal["gelu_erf", "gelu_tanh", "gelu_quick", "silu"]


class Ops(Protocol):
    """All the arithmetic the models need. Shapes in comments: arguments -> result."""

    name: str  # "torch" or "numpy"
    device: str

    def running(self, rows: int, weights: int) -> AbstractContextManager[None]:
        """Give a pass the threads it is worth: `rows` rows through matrices of up to `weights` numbers."""
        ...

    def weight(self, view: TensorView) -> Weight: ...

    def array(self, x: np.ndarray) -> Array: ...  # copies to the device, float32

    def numpy(self, x: Array) -> np.ndarray: ...  # float32, on the host

    def zeros(self, shape: tuple[int, ...]) -> Array: ...

    def linear(self, x: Array, w: Weight, b: Weight | None = None) -> Array: ...  # (T, K) (N, K) (N,) -> (T, N)

    def embed(self, w: Weight, ids: Sequence[int]) -> Array: ...  # (V, D), T ids -> (T, D); only those rows are read

    def patches(self, x: Array, w: Weight, b: Weight | None = None) -> Array: ...  # (3, Y, X) (D, 3, P, P) -> (N, D)

    def layer_norm(self, x: Array, w: Weight, b: Weight | None, eps: float) -> Array: ...  # (T, D) -> (T, D)

    def rms_norm(self, x: Array, w: Weight, eps: float) -> Array: ...  # (T, D) -> (T, D)

    def activation(self, x: Array, kind: Activation) -> Array: ...

    def rope(self, x: Array, cos: Array, sin: Array) -> Array: ...  # (T, H, dh) (T, r/2) (T, r/2): adjacent pairs

    def attention(self, q: Array, k: Array, v: Array, scale: float, mask: Array | None) -> Array:
        """softmax(q k^T * scale + mask) v.  (T, H, dh) (S, Hkv, dh) (S, Hkv, dh) -> (T, H * dh).

        Query head h reads key/value head h // (H / Hkv). `mask` is (T, S), 0 where allowed and -inf where not."""
        ...

    def attention_weights(self, q: Array, k: Array, scale: float, mask: Array | None) -> Array: ...  # -> (H, T, S)

    def attention_values(self, weights: Array, v: Array) -> Array: ...  # (H, T, S) (S, Hkv, dh) -> (T, H * dh)

    def add(self, x: Array, w: Weight) -> Array: ...  # x + w, same shape: position embeddings

    def concat(self, parts: Sequence[Array | Weight]) -> Array: ...  # rows of (t_i, D); a (D,) weight is one row

    def all_finite(self, x: Array) -> bool: ...

    def uncached(self) -> "Ops": ...  # the same for a tower, whose keys and values pass through no cache
