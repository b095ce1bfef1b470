"""Define the arithmetic that a forward pass may use. A backend is a class with these methods; a model imports only
this.

T new positions, S all so far, D or K width in, N width out, H query heads, Hkv key/value heads, dh head size, P patch
size. Arrays belong to the backend; they support `+ - * [] .shape .reshape(...)`, and `Ops.numpy` gives float32.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..gguf.file import TensorView
from .sees import Sees

Array = Any  # numpy.ndarray or torch.Tensor, float32
Plan = Any  # a backend's own form of `Sees`, made once a pass and used in every layer
Activation = Literal["gelu_erf", "gelu_tanh", "gelu_quick", "silu"]
Pairs = Literal["adjacent", "halves"]
"""Which channels `Ops.rope` turns together: 2i and 2i + 1 (ggml's NORM), or i and i + dh / 2 (NEOX, transformers)."""
CacheType = Literal["f32", "f16"]


class Matrix(Protocol):
    """A stored matrix that knows how it is multiplied: whoever made it chose the kernel, once, when the file was
    loaded."""

    name: str  # the tensor's, in the file
    shape: tuple[int, ...]  # (N, K), or (N, 3, P, P) of a patch kernel
    type: str  # the file's ggml type

    def product(self, x: Array) -> Array:
        """Multiply: x w^T.  (T, K) -> (T, N)"""
        ...

    def rows(self, ids: Sequence[int]) -> Array:
        """Read only these rows.  T ids -> (T, K)"""
        ...


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix (N, K), with its bias (N,) where the file has one."""

    weight: Matrix
    bias: Array | None = None


@dataclass(frozen=True, slots=True)
class Norm:
    """The gain (D,) of a normalisation, with its bias (D,) where the file has one."""

    weight: Array
    bias: Array | None = None


@dataclass(frozen=True, slots=True)
class KV:
    """Keys and values that queries look at, (S, Hkv, dh) each, rounded already to the type that they are kept in."""

    keys: Array
    values: Array
    type: CacheType = "f32"


class Cache(Protocol):
    """Keys and values of the positions already run, for every layer, in the backend's own memory."""

    @property
    def length(self) -> int: ...

    def append(self, layer: int, k: Array, v: Array) -> KV:
        """Store k and v, (T, Hkv, dh), behind the `length` positions; return all (length + T) of the layer.

        `length` itself moves only at `advance`, when every layer has its rows."""
        ...

    def advance(self, count: int) -> None: ...

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        ...


class Ops(Protocol):
    """All the arithmetic that the models need. Shapes in comments: arguments -> result."""

    name: str  # "torch" or "numpy"
    device: str

    def running(self, rows: int, weights: int) -> AbstractContextManager[None]:
        """Give a pass the threads it is worth: `rows` rows through matrices of up to `weights` numbers."""
        ...

    def matrix(self, view: TensorView) -> Matrix: ...  # keeps the raw blocks; converts nothing yet

    def vector(self, view: TensorView) -> Array: ...  # a small tensor of any shape: gains, biases, position table

    def array(self, x: np.ndarray) -> Array: ...  # copies to the device, float32

    def numpy(self, x: Array) -> np.ndarray: ...  # float32, on the host

    def linear(self, x: Array, w: Linear) -> Array: ...  # x w^T + b: (T, K) -> (T, N)

    def linears(self, x: Array, ws: Sequence[Linear]) -> tuple[Array, ...]: ...  # several matrices, one input

    def patches(self, x: Array, w: Linear) -> Array: ...  # (3, Y, X) -> (Y/P * X/P, D), row by row

    def layer_norm(self, x: Array, w: Norm, eps: float) -> Array: ...  # (T, D) -> (T, D)

    def rms_norm(self, x: Array, gain: Array, eps: float) -> Array: ...  # over the last axis, as long as the gain

    def activation(self, x: Array, kind: Activation) -> Array: ...

    def rope(self, x: Array, cos: Array, sin: Array, pairs: Pairs) -> Array: ...  # (T, H, dh) (T, dh/2) (T, dh/2)

    def cache(self, n_layer: int, n_head_kv: int, head_size: int, limit: int) -> Cache: ...

    def plan(self, sees: Sees) -> Plan: ...

    def attention(self, q: Array, kv: KV, scale: float, plan: Plan) -> Array:
        """Return softmax(q k^T * scale + mask) v.  (T, H, dh), kv of S positions -> (T, H * dh)

        Query head h reads key/value head h // (H / Hkv). `plan` says which keys each query sees."""
        ...

    def attention_weights(self, q: Array, kv: KV, scale: float, plan: Plan) -> Array: ...  # -> (H, T, S)

    def attention_values(self, weights: Array, kv: KV) -> Array: ...  # (H, T, S) -> (T, H * dh)

    def concat(self, rows: Sequence[Array]) -> Array: ...  # of (t_i, D)

    def all_finite(self, x: Array) -> bool: ...
