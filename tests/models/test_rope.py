"""Rotary angles against numbers that transformers gave (5.24, modeling_rope_utils), and against YaRN's own words."""

import math
from dataclasses import replace

import numpy as np
import pytest

from llava_ref.models.rope import RopeConfig, cos_sin, frequencies, length, ramp

PLAIN = RopeConfig(12, 500.0, "none", 1.0, 64, 1.0, None, 32.0, 1.0)
YARN = replace(PLAIN, scaling="yarn", factor=4.0)
RAMP_INSIDE = [1.0, 0.26621526, 0.062996052, 0.01118034, 0.0039685024, 0.0014086348]
RAMP_TO_THE_END = [1.0, 0.68129206, 0.46415889, 0.28987548, 0.17953621, 0.11008494]
OWN_TURNS = [1.0, 0.35495368, 0.1259921, 0.044721361, 0.01587401, 0.003521587]
FACTOR_BELOW_1 = [1.0, 0.47327161, 0.20998684, 0.089442722, 0.031748019, 0.011269079]
# transformers' ROPE_INIT_FUNCTIONS["yarn"] for these settings, (6,) and the length
RECORDED = {
    "ramp inside": (YARN, RAMP_INSIDE, 1.1386294361119891),
    "ramp to the end": (replace(YARN, base=10.0, original_context=512), RAMP_TO_THE_END, 1.1386294361119891),
    "own turns": (replace(YARN, beta_fast=4.0, beta_slow=2.0, original_context=4096), OWN_TURNS, 1.1386294361119891),
    "factor below 1": (replace(YARN, factor=0.5), FACTOR_BELOW_1, 1.0),
    "own length": (replace(YARN, yarn_attn_factor=0.5), RAMP_INSIDE, 0.5),
}


@pytest.mark.parametrize("name", RECORDED)
def test_yarn_is_transformers_yarn(name):
    config, angles, scale = RECORDED[name]
    assert frequencies(config, None) == pytest.approx(angles, rel=1e-6)
    assert length(config) == pytest.approx(scale, rel=1e-12)
    cos, sin = cos_sin(config, frequencies(config, None), np.arange(3))
    assert cos[0] == pytest.approx([scale] * 6, rel=1e-6) and (sin[0] == 0).all()
    assert np.hypot(cos, sin) == pytest.approx(np.full((3, 6), scale), rel=1e-6)


def test_the_ramp_ends_at_the_last_channel_at_most():
    """ggml and transformers both cut the end at n_rot - 1, which is beyond the last pair; the slope depends on it."""
    config = replace(YARN, base=10.0, original_context=512)
    assert math.ceil(12 * math.log(512 / (2 * math.pi)) / (2 * math.log(10.0))) == 12
    assert ramp(config) == (2, 11)
    plain, kept = 10.0 ** (-np.arange(6) / 6), 1 - np.clip((np.arange(6) - 2) / 9, 0, 1)
    assert frequencies(config, None) == pytest.approx(plain / 4 * (1 - kept) + plain * kept, rel=1e-12)


@pytest.mark.parametrize("scaling, scale", [("none", 0.5), ("linear", 0.5), ("yarn", 0.5 * 1.1386294361119891)])
def test_attn_factor_lengthens_whatever_the_scaling(scaling, scale):
    assert length(replace(YARN, scaling=scaling, attn_factor=0.5)) == pytest.approx(scale)


def test_linear_divides_and_divisors_do_too():
    plain = frequencies(PLAIN, None)
    assert plain == pytest.approx(500.0 ** (-np.arange(6) / 6))
    assert frequencies(replace(PLAIN, scaling="linear", factor=4.0), None) == pytest.approx(plain / 4)
    assert frequencies(PLAIN, np.arange(1, 7)) == pytest.approx(plain / np.arange(1, 7))
