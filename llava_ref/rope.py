"""Rotary position angles, in float64 and rounded once.   T positions, r = n_rot / 2 pairs of channels.

Plain: Su et al. 2021, https://arxiv.org/abs/2104.09864. Linear: positions divided by `rope.scaling.factor`. YaRN: Peng
et al. 2023, https://arxiv.org/abs/2309.00071, with ggml's rounding of the ramp (ggml_rope_yarn_corr_dims, llama.cpp
b10605). Llama 3's scaling arrives as `rope_freqs.weight`: one divisor a pair, written by the converter.
"""

import math

import numpy as np

from .config import RopeConfig


def frequencies(c: RopeConfig, divisors: np.ndarray | None) -> np.ndarray:
    """The angle each pair turns by per position.  divisors (r,) or None -> (r,) float64"""
    pair = np.arange(c.n_rot // 2)
    plain = c.base ** (-2.0 * pair / c.n_rot)
    if divisors is not None:
        plain = plain / np.asarray(divisors, np.float64)
    if c.scaling != "yarn":
        return plain / c.factor
    low, high = _ramp(c)
    keep = 1 - np.clip((pair - low) / max(0.001, high - low), 0, 1)  # 1: fast pairs, left as they are
    return plain / c.factor * (1 - keep) + plain * keep


def _ramp(c: RopeConfig) -> tuple[float, float]:
    """Between which pairs YaRN goes from unscaled to scaled."""

    def pair_turning(times: float) -> float:  # the pair that makes this many turns over the original context
        return c.n_rot * math.log(c.original_context / (times * 2 * math.pi)) / (2 * math.log(c.base))

    return max(0, math.floor(pair_turning(c.beta_fast))), min(c.n_rot - 1, math.ceil(pair_turning(c.beta_slow)))


def cos_sin(c: RopeConfig, per_position: np.ndarray, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For positions first..first+count-1 and `frequencies`: cosines and sines, each (T, r) float32.

    YaRN also lengthens q and k by attn_factor * (1 + 0.1 ln factor)."""
    angle = np.arange(first, first + count)[:, None] * per_position
    length = c.attn_factor * (1 + 0.1 * math.log(c.factor)) if c.scaling == "yarn" else 1.0
    return (np.cos(angle) * length).astype(np.float32), (np.sin(angle) * length).astype(np.float32)
