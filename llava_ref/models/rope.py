"""Compute rotary position angles, in float64 and rounded once.   T positions, r = n_rot / 2 pairs of channels.

Plain: Su et al. 2021, https://arxiv.org/abs/2104.09864. Linear: positions divided by `rope.scaling.factor`. YaRN: Peng
et al. 2023, https://arxiv.org/abs/2309.00071, with ggml's rounding of the ramp (ggml_rope_yarn_corr_dims, llama.cpp
b10605; transformers rounds alike). Llama 3's scaling arrives as `rope_freqs.weight`: one divisor a pair, written by the
converter.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary positions: what angle each pair of channels turns by."""

    n_rot: int
    base: float
    scaling: Literal["none", "linear", "yarn"]
    factor: float  # 1 for none
    original_context: int
    attn_factor: float  # q and k are lengthened by this, whatever the scaling
    yarn_attn_factor: float | None  # takes the place of YaRN's own 1 + 0.1 ln factor
    beta_fast: float  # YaRN's ramp begins at the pair that makes so many turns over the original context,
    beta_slow: float  # and ends at the one that makes so many

    def about(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        return {"base": self.base, "scaling": self.scaling, "factor": self.factor, "length": length(self)}


def frequencies(c: RopeConfig, divisors: np.ndarray | None) -> np.ndarray:
    """Return the angle each pair turns by per position.  divisors (r,) or None -> (r,) float64"""
    pair = np.arange(c.n_rot // 2)
    plain = c.base ** (-2.0 * pair / c.n_rot)
    if divisors is not None:
        plain = plain / np.asarray(divisors, np.float64)
    if c.scaling != "yarn":
        return plain / c.factor
    low, high = ramp(c)
    keep = 1 - np.clip((pair - low) / max(0.001, high - low), 0, 1)  # 1: fast pairs, left as they are
    return plain / c.factor * (1 - keep) + plain * keep


def ramp(c: RopeConfig) -> tuple[float, float]:
    """Return between which pairs YaRN goes from unscaled to scaled. The second is below the first where the settings
    contradict each other."""

    def pair_turning(times: float) -> float:  # the pair that makes this many turns over the original context
        return c.n_rot * math.log(c.original_context / (times * 2 * math.pi)) / (2 * math.log(c.base))

    return max(0, math.floor(pair_turning(c.beta_fast))), min(c.n_rot - 1, math.ceil(pair_turning(c.beta_slow)))


def length(c: RopeConfig) -> float:
    """Return by what q and k are lengthened: `attn_factor`, and in YaRN 1 + 0.1 ln factor besides, if factor is above
    1 (llama.cpp b11549, llama-context.cpp; transformers' get_mscale)."""
    if c.scaling != "yarn":
        return c.attn_factor
    own = 1 + 0.1 * math.log(c.factor) if c.factor > 1 else 1.0
    return c.attn_factor * (own if c.yarn_attn_factor is None else c.yarn_attn_factor)


def cos_sin(c: RopeConfig, per_position: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and sines of `positions` (T,) times `frequencies` (r,), each (T, r) float32, times `length`.

    Where pairs turn by positions of their own, those are (T, r)."""
    turned = positions if positions.ndim == 2 else positions[:, None]
    angle, scale = turned * per_position, length(c)
    return (np.cos(angle) * scale).astype(np.float32), (np.sin(angle) * scale).astype(np.float32)
