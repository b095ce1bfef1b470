"""Measure how far apart two arrays are.

relRMS is ||got - want|| / ||want||, where `want` is the reference; sums are in float64. T positions, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..ops.threads import one_blas_thread


@dataclass(frozen=True, slots=True)
class Distance:
    """Holds the distance between two arrays of one shape."""

    rel_rms: float
    max_abs: float
    cosine: float
    worst: tuple[int, ...]
    """Index of the largest difference."""
    first_bad: tuple[int, ...] | None
    """First index, in memory order, whose difference exceeds the bound times the reference's RMS."""


def distance(got: np.ndarray, want: np.ndarray, bound: float) -> Distance:
    """Measure the distance of `got` from the reference `want`, of the same shape and not empty.

    NaN and infinity are infinitely far from anything but themselves; if both arrays have the same one at an index, it
    counts as equal."""
    x, y = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(all="ignore"):
        off = np.where(_same(x, y), 0.0, np.abs(x - y))
    off = np.where(np.isfinite(off), off, np.inf)
    rms = _rms(np.where(np.isfinite(y), y, 0.0))
    alike = np.isfinite(x) & np.isfinite(y)
    bad = off > bound * rms
    return Distance(
        rel_rms=_ratio(_rms(off), rms),
        max_abs=float(off.max()),
        cosine=cosine(x[alike], y[alike]),
        worst=_place(int(off.argmax()), got.shape),
        first_bad=_place(int(bad.argmax()), got.shape) if bad.any() else None,
    )


def bad_numbers(got: np.ndarray, want: np.ndarray, names: tuple[str, str], axis: int = 0) -> tuple[str | None, bool]:
    """Say which of two arrays of one shape hold NaN or infinity, and at which row along `axis` first; None if neither
    does.

    Also returns whether both hold the same ones at the same indices."""
    x, y = got.astype(np.float64), want.astype(np.float64)
    bad = ~(np.isfinite(x) & np.isfinite(y))
    apart = bad & ~_same(x, y)
    if not bad.any():
        return None, True
    first = _place(int((apart if apart.any() else bad).argmax()), bad.shape)
    named = [(_word(float(a[first])), name) for a, name in zip((x, y), names, strict=True)]
    words = " and ".join(f"{word} in {name}" for word, name in named if word)
    row = f" at row {first[axis]}" if first else ""
    return f"{words}, first{row}, {list(first)}", not apart.any()


def rounding(x: np.ndarray, kind: str) -> tuple[float, float]:
    """Return how far rounding to `kind`, F16 or BF16, may have moved numbers: relative RMS, and the maximum.

    Rounding moves a number by at most half the distance to its neighbour. The significand of BF16 is 16 bits shorter
    than that of float32, so its neighbours are 2^16 times as far away."""
    with np.errstate(all="ignore"):
        step = np.spacing(x.astype(np.float16)) if kind == "F16" else np.spacing(x.astype(np.float32)) * 65536
    finite = np.isfinite(step) & np.isfinite(x)
    half = np.abs(np.where(finite, step, 0)).astype(np.float64) / 2
    relative = _ratio(_rms(half), _rms(np.where(finite, x, 0).astype(np.float64))) if x.size else 0.0
    return min(relative, 1.0), float(half.max(initial=0.0))


def fitted(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return `x` reshaped to `shape` if the two differ only by axes of 1; otherwise unchanged."""
    same = [n for n in x.shape if n != 1] == [n for n in shape if n != 1]
    return x.reshape(tuple(shape)) if same else x


@one_blas_thread()
def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of the angle between two arrays as vectors; 1 if both are zero."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size else float(np.array_equal(x, y))


@one_blas_thread()
def rel_rms(got: np.ndarray, want: np.ndarray) -> float:
    """Return ||got - want|| / ||want||, in float64; NaN in either gives NaN. Raises ValueError if shapes differ."""
    if got.shape != want.shape:
        raise ValueError(f"shape {got.shape}, expected {want.shape}")
    got, want = got.astype(np.float64), want.astype(np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def max_abs(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest absolute difference."""
    return float(np.abs(got.astype(np.float64) - want).max())


def kl(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Return the KL divergence of `got` from `want`, logits (T, V), in nats at each position (T,).

    It is what predicting with `got` costs if `want` is true."""
    p, q = log_softmax(want), log_softmax(got)
    divergence: np.ndarray = (np.exp(p) * (p - q)).sum(-1)
    return divergence


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of logits over the last axis, in float64."""
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    normalised: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return normalised


def _same(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((x == y) | (np.isnan(x) & np.isnan(y)))


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinity" if math.isinf(value) else ""


def _rms(x: np.ndarray) -> float:
    return math.sqrt(float(np.square(x).mean()))


def _ratio(off: float, size: float) -> float:
    if size and math.isfinite(size):
        return off / size
    return 0.0 if off == 0 else math.inf


def _place(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(index, shape))
