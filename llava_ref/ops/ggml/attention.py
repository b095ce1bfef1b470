"""ggml's flash attention on the CPU for few queries: one key after the other, the result held in float16.

T queries, S keys, H query heads, Hkv key/value heads, dh head size. Source: llama.cpp b10605,
ggml/src/ggml-cpu/ops.cpp:8475-8711.
"""

import numpy as np

from .rounding import half


def one_by_one(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, mask: np.ndarray | None) -> np.ndarray:
    """Return softmax(q k^T * scale + mask) v.  (T, H, dh) (S, Hkv, dh) (S, Hkv, dh) (T, S) -> (T, H * dh), float32

    q, k and v are float16 numbers in float32. After each key, what is summed so far is rounded to float16, and where
    the largest score so far grew, it has been scaled down, and rounded, before. One such rounding that goes the other
    way shows, so scores and powers of e are computed in float64 and rounded once."""
    (T, H, dh), (S, Hkv, _) = q.shape, k.shape
    queries = q.astype(np.float64).transpose(1, 0, 2).reshape(Hkv, -1, dh)
    products = (queries @ k.astype(np.float64).transpose(1, 2, 0)).astype(np.float32)
    scores = products.reshape(H, T, S) * np.float32(scale)
    if mask is not None:
        scores = scores + mask
    weight, shrink = online(scores)
    values = np.repeat(v, H // Hkv, axis=1)[:, :, None, :].astype(np.float64)  # (S, H, 1, dh)
    y, total = np.zeros((H, T, dh), np.float32), np.zeros((H, T), np.float32)
    for i in range(S):
        w, s = weight[..., i], shrink[..., i]
        y = half((half(y * s[..., None]) + values[i] * w[..., None]).astype(np.float32))
        total = total * s + w
    y *= (1 / np.where(total == 0, np.float32(1), total))[..., None]
    return y.transpose(1, 0, 2).reshape(T, H * dh)


def online(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each key, in order, exp(score - largest so far), and exp(largest before it - largest so far), by which
    the sum so far shrinks.  Scores (..., S), -inf where a key is hidden -> (..., S) each"""
    largest = np.maximum.accumulate(scores, -1)
    before = np.concatenate([np.full_like(largest[..., :1], -np.inf), largest[..., :-1]], -1)
    hidden = np.isneginf(scores)
    with np.errstate(invalid="ignore"):  # -inf - -inf, where nothing has been seen yet
        weight = np.where(hidden, np.float32(0), _exp(scores - largest))
        shrink = np.where(hidden, np.float32(1), _exp(before - largest))
    return weight, shrink


def _exp(x: np.ndarray) -> np.ndarray:
    return np.exp(x.astype(np.float64)).astype(np.float32)
