"""Define what operations take and give back: arrays, matrices, keys and values.

T new positions, S all so far, D or K width in, N width out, Hkv key/value heads, dh head size, P patch size. Arrays
belong to the backend; they support `+ - * [] .shape .reshape(...)`, and `Ops.numpy` gives float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Array = Any  # numpy.ndarray or torch.Tensor; float32, but for what a cache of float16 returns
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

    lag: int
    """By how much the position that rope turns the next token by is behind `length`: for a `Stepper`."""

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
