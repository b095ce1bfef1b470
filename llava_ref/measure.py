"""How far apart two arrays are.

relRMS is ||got - want|| / ||want||, `want` the reference; sums in float64. T positions, V vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np

from .threads import one_blas_thread


@dataclass(frozen=True, slots=True)
class Distance:
    """Between two arrays of one shape."""

    rel_rms: float
    max_abs: float
    cosine: float
    worst: tuple[int, ...]
    """Where they are furthest apart."""
    first_bad: tuple[int, ...] | None
    """The first place, in the order of memory, that is off by more than the bound times the reference's RMS."""


def distance(got: np.ndarray, want: np.ndarray, bound: float) -> Distance:
    """Of `got` from the reference `want`, of the same shape and not empty. NaN and infinity are infinitely far from
    anything but themselves."""
    x, y = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(all="ignore"):
        off = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
    off = np.where(np.isfinite(off), off, np.inf)
    rms = _rms(y)
    bad = off > bound * rms
    return Distance(
        rel_rms=_ratio(_rms(off), rms),
        max_abs=float(off.max()),
        cosine=cosine(x, y),
        worst=_place(int(off.argmax()), got.shape),
        first_bad=_place(int(bad.argmax()), got.shape) if bad.any() else None,
    )


@one_blas_thread()
def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two arrays as vectors; 1 where both are zero."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size else float(np.array_equal(x, y))


@one_blas_thread()
def rel_rms(got: np.ndarray, want: np.ndarray) -> float:
    """||got - want|| / ||want||, in float64. ValueError where shapes differ; NaN anywhere gives NaN."""
    if got.shape != want.shape:
        raise ValueError(f"shape {got.shape}, expected {want.shape}")
    got, want = got.astype(np.float64), want.astype(np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def max_abs(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference."""
    return float(np.abs(got.astype(np.float64) - want).max())


def kl(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Logits (T, V) -> what predicting with `got` costs where `want` is true, in nats, at each position (T,)."""
    p, q = log_softmax(want), log_softmax(got)
    divergence: np.ndarray = (np.exp(p) * (p - q)).sum(-1)
    return divergence


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    normalised: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return normalised


def _rms(x: np.ndarray) -> float:
    return math.sqrt(float(np.square(x).mean()))


def _ratio(off: float, size: float) -> float:
    if size and math.isfinite(size):
        return off / size
    return 0.0 if off == 0 else math.inf


def _place(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(index, shape))
