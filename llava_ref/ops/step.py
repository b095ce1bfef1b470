"""Describe a decoder as data, for a backend that runs one token through all its layers at once.

D width, H query heads, Hkv key/value heads, dh head size, F MLP width, V vocabulary. A decoder's `forward` stays the
definition; a test holds every backend's stepper to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .arrays import Activation, Array, Linear, Matrix, Pairs

Angles = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Positions (n,) -> cosines and sines of their rotary angles, (n, dh / 2) float32 each."""


@dataclass(frozen=True, slots=True)
class StepLayer:
    """One layer: norm, attention, residual, norm, gated MLP, residual."""

    attn_norm: Array  # (D,)
    q: Linear  # (H * dh, D)
    k: Linear  # (Hkv * dh, D)
    v: Linear  # (Hkv * dh, D)
    out: Linear  # (D, H * dh)
    ffn_norm: Array  # (D,)
    gate: Linear  # (F, D)
    up: Linear  # (F, D)
    down: Linear  # (D, F)
    angles: Angles
    window: int | None = None
    head_norms: tuple[Array, Array] | None = None  # (dh,) gains of queries and keys, before rope
    post_norms: tuple[Array, Array] | None = None  # (D,) gains of attention's and the MLP's result, before the sum


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A decoder: a token id -> logits (V,) of the next one."""

    embd: Matrix  # (V, D)
    embd_scale: float  # multiplies the row of a token
    layers: tuple[StepLayer, ...]
    norm: Array  # (D,)
    output: Linear  # (V, D)
    eps: float
    n_head: int
    n_head_kv: int
    head_size: int
    scale: float  # of attention
    pairs: Pairs
    activation: Activation
    lags: bool = False  # rope may turn a token by a position that is behind its order: `Cache.lag`


class NextLogits(Protocol):
    """Logits (V,) of the next token, still on a device; `numpy.asarray` fetches them, float32."""

    @property
    def finite(self) -> bool: ...

    @property
    def total(self) -> float:
        """Return the logarithm of the sum of e to each of the V logits."""
        ...

    @property
    def ids(self) -> np.ndarray:
        """Return the likeliest tokens in ascending order of their ids: (k,) int64."""
        ...

    @property
    def values(self) -> np.ndarray:
        """Return their logits, (k,) float32; no other token's is above the least of them."""
        ...

    def __len__(self) -> int: ...

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray: ...


class Stepper(Protocol):
    """Run a decoder by one token at a time over one cache."""

    def step(self, token: int) -> np.ndarray | NextLogits:
        """Run a token at the next position, whose keys and values are then in the cache.  -> logits (V,)"""
        ...


def one_by_one(steppers: Sequence[Stepper], tokens: Sequence[int]) -> Sequence[np.ndarray | NextLogits]:
    """Step each sequence by itself: `Ops.step_together` where sequences cannot share a step."""
    return [stepper.step(token) for stepper, token in zip(steppers, tokens, strict=True)]
