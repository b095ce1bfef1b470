"""How far two answers are apart.   T positions, V vocabulary."""

import numpy as np


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
    p, q = _log_softmax(want), _log_softmax(got)
    result: np.ndarray = (np.exp(p) * (p - q)).sum(-1)
    return result


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
