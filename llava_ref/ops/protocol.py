"""Define the arithmetic that a forward pass may use. A backend is a class with these methods; a model imports only
this.

T new positions, S all so far, D or K width in, N width out, H query heads, Hkv key/value heads, dh head size, P patch
size.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from ..gguf.file import TensorView
from .arrays import KV, Activation, Array, Cache, CacheType, Linear, Matrix, Norm, Pairs, Plan
from .sees import Sees
from .step import NextLogits, Stepper, StepPlan

__all__ = [
    "KV", "Activation", "Array", "Cache", "CacheType", "Linear", "Matrix", "Norm", "Ops", "Pairs", "Plan",
]  # fmt: skip


class Ops(Protocol):
    """All the arithmetic that the models need. Shapes in comments: arguments -> result."""

    name: str  # "torch" or "numpy"
    device: str
    joined_rows: int
    """Rows up to which a decoder's units are run as one; 0: each by itself, so that no bit depends on the others."""
    together: int
    """Sequences whose next tokens may be run in one step, which changes no bit of any; 1: each by itself."""

    def kernels(self) -> str:
        """Say in one line what multiplies matrices here, and which types have no kernel."""
        ...

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

    def depthwise(self, x: Array, kernel: Array, places: np.ndarray) -> Array:
        """Sum k rows for each of N, each channel by its own numbers.  (n, D) (D, k) -> (N, D)

        `places` (k, N) int64: numbers of rows of x; -1 stands for a row of zeros."""
        ...

    def layer_norm(self, x: Array, w: Norm, eps: float) -> Array: ...  # (T, D) -> (T, D)

    def rms_norm(self, x: Array, gain: Array, eps: float) -> Array: ...  # over the last axis, as long as the gain

    def activation(self, x: Array, kind: Activation) -> Array: ...

    def clamp(self, x: Array, low: float, high: float) -> Array: ...  # each number moved into [low, high]

    def gated(self, gate: Array, up: Array, kind: Activation) -> Array: ...  # activation(gate) * up, (T, F)

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

    def replay(self, f: Callable[[Array], Array], x: np.ndarray) -> Array:
        """Return f(x), x on the device. A backend may record what `f` launches and launch only that the next time, so
        `f` must do the same for every x of a shape."""
        ...

    def stepper(self, plan: StepPlan, cache: Cache) -> Stepper | None:
        """Return what runs one token through the whole decoder over this cache; None where nothing is faster than its
        `forward`."""
        ...

    def step_together(self, steppers: Sequence[Stepper], tokens: Sequence[int]) -> Sequence[np.ndarray | NextLogits]:
        """Run a token of each of up to `together` sequences of one decoder, each at its next position.

        The logits are the caller's own to keep. If this raises, no cache has moved on."""
        ...
