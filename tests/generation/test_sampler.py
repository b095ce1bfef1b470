"""Each stage against a plain reference written token by token, and the draws against the probabilities they follow."""

import math
from collections import Counter
from dataclasses import fields
from typing import get_type_hints

import numpy as np
import pytest

from llava_ref.errors import ParameterError
from llava_ref.generation.filters import PENALTY_WINDOW, filtered
from llava_ref.generation.sampler import Sampler
from llava_ref.generation.sampling import Sampling, SamplingOptions

from ..support.helpers import rand

V = 53


def softmax(logits: dict[int, float]) -> dict[int, float]:
    highest = max(logits.values())
    weights = {i: math.exp(x - highest) for i, x in logits.items()}
    return {i: w / math.fsum(weights.values()) for i, w in weights.items()}


def ranked(logits: dict[int, float]) -> list[int]:
    return sorted(logits, key=lambda i: (-logits[i], i))


def plain_bias(logits, s, history):
    return {i: x + s.logit_bias.get(i, 0.0) for i, x in logits.items()}


def plain_penalties(logits, s, history):
    counts = Counter(history[-64:])
    out = {}
    for i, x in logits.items():
        if i in counts:
            x = x / s.repeat_penalty if x > 0 else x * s.repeat_penalty
            x = x - counts[i] * s.frequency_penalty - s.presence_penalty
        out[i] = x
    return out


def plain_top_k(logits, s, history):
    return {i: logits[i] for i in (ranked(logits)[: s.top_k] if s.top_k else logits)}


def plain_top_p(logits, s, history):
    probabilities, kept, total = softmax(logits), {}, 0.0
    for i in ranked(logits):
        kept[i] = logits[i]
        total += probabilities[i]
        if s.top_p < 1 and total >= s.top_p:
            break
    return kept


def plain_min_p(logits, s, history):
    probabilities = softmax(logits)
    least = s.min_p * max(probabilities.values())
    return {i: x for i, x in logits.items() if probabilities[i] >= least * (1 - 1e-12)}


STAGES = [plain_bias, plain_penalties, plain_top_k, plain_top_p, plain_min_p]  # llama.cpp's order


def plain(logits: np.ndarray, s: Sampling, history: list[int]) -> dict[int, float]:
    left = {i: float(x) for i, x in enumerate(logits)}
    for stage in STAGES:
        left = stage(left, s, history)
    return left


SETTINGS = {
    "off": {},
    "bias": {"logit_bias": {0: 3.5, 17: -100.0, 52: 100.0}},
    "repeat": {"repeat_penalty": 1.7},
    "repeat below one": {"repeat_penalty": 0.6},
    "frequency": {"frequency_penalty": 0.8},
    "presence": {"presence_penalty": -1.3},
    "top_k": {"top_k": 7},
    "top_k one": {"top_k": 1},
    "top_k over": {"top_k": 5000},
    "top_p": {"top_p": 0.62},
    "top_p zero": {"top_p": 0.0},
    "min_p": {"min_p": 0.11},
    "min_p one": {"min_p": 1.0},
    "all": {
        "logit_bias": {3: 2.0, 9: -2.0},
        "repeat_penalty": 1.3,
        "frequency_penalty": 0.4,
        "presence_penalty": 0.2,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.05,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", range(5))
def test_stages_agree_with_the_plain_reference(name, seed):
    logits = 2 * rand(V, seed=seed)
    logits[[4, 30]] = logits.max()  # ties at the top, and one on a likely border
    history = np.random.default_rng(seed).integers(0, V, 150).tolist()
    s = Sampling(**SETTINGS[name])
    got = filtered(logits, history, s)
    want = plain(logits, s, history)
    assert set(np.flatnonzero(got > -np.inf).tolist()) == set(want)
    np.testing.assert_allclose(got[list(want)], list(want.values()), rtol=0, atol=1e-12)


def test_top_p_comes_before_the_temperature():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    drawn = draws(logits, Sampling(temperature=50.0, top_p=0.75, seed=1), 500)
    assert set(drawn) == {0, 1}, "at temperature 50 all four would be within 0.75"


def draws(logits: np.ndarray, sampling: Sampling, count: int) -> list[int]:
    sampler = Sampler(sampling, len(logits))
    return [sampler.pick(logits) for _ in range(count)]


def chi_squared(drawn: list[int], expected: np.ndarray) -> float:
    counts = np.bincount(drawn, minlength=len(expected))
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0] * len(drawn)
    return float((((counts - expected) ** 2) / expected).sum())


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_draws_follow_the_softmax(temperature):
    logits = rand(9, seed=3)
    p = np.exp(logits / temperature, dtype=np.float64)
    drawn = draws(logits, Sampling(temperature=temperature, seed=11), 6000)
    assert chi_squared(drawn, p / p.sum()) < 26.1  # 8 degrees of freedom: above it one time in a thousand
    wrong = np.exp(logits / (temperature * 1.25), dtype=np.float64)
    assert chi_squared(drawn, wrong / wrong.sum()) > 26.1, "6,000 draws must tell 25 % of temperature"


def test_draws_after_top_k_are_renormalised():
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05]))
    drawn = draws(logits, Sampling(temperature=1.0, top_k=2, seed=5), 4000)
    assert chi_squared(drawn, np.array([0, 0.4, 0, 0.25, 0]) / 0.65) < 10.8  # 1 degree of freedom


def test_a_seed_decides_the_draws():
    logits = rand(40, seed=1)
    first, again, other = (draws(logits, Sampling(temperature=1.0, seed=seed), 30) for seed in (7, 7, 8))
    assert first == again != other
    unseeded = [draws(logits, Sampling(temperature=1.0), 30) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_a_tiny_temperature_is_nearly_greedy():
    logits = np.array([1.0, 3.0, 2.999, -5.0])
    assert set(draws(logits, Sampling(temperature=5e-324, seed=2), 50)) == {1}


def test_greedy_takes_the_lowest_id_of_the_highest():
    assert draws(np.array([1.0, 5.0, 5.0, 2.0], np.float32), Sampling(), 3) == [1, 1, 1]


def test_greedy_follows_bias_and_penalties():
    logits = np.array([1.0, 2.0, 3.0])
    assert draws(logits, Sampling(logit_bias={0: 2.5}), 1) == [0]
    # Every pick lowers its own logit by 0.6 more: 3, then 2.4 > 2, then 1.8 < 2, then 1.4 < 1.8
    assert draws(logits, Sampling(frequency_penalty=0.6), 4) == [2, 2, 1, 2]


def test_penalties_see_the_end_of_the_prompt_only():
    logits = np.array([5.0, 4.9, 0.0])
    just_out, just_in = [0] + [2] * PENALTY_WINDOW, [0] + [2] * (PENALTY_WINDOW - 1)
    s = Sampling(presence_penalty=1.0)
    assert Sampler(s, 3, just_out).pick(logits) == 0
    assert Sampler(s, 3, just_in).pick(logits) == 1


def test_logits_stay_as_they_are():
    logits = rand(V, seed=4)
    before = logits.copy()
    Sampler(Sampling(temperature=0.7, **SETTINGS["all"], seed=1), V, [1, 2, 3]).pick(logits)
    np.testing.assert_array_equal(logits, before)


BAD = [
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "warm"),
    ("temperature", True),
    ("top_k", -1),
    ("top_k", 2.5),
    ("top_k", False),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("min_p", -0.5),
    ("repeat_penalty", 0.0),
    ("frequency_penalty", 2.1),
    ("presence_penalty", -2.1),
    ("logit_bias", {5: math.nan}),
    ("logit_bias", {5: 101}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {"5": 1.0}),
    ("seed", -1),
    ("seed", 1.0),
]


@pytest.mark.parametrize("name, value", BAD, ids=str)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(ParameterError) as caught:
        Sampling(**{name: value})
    assert str(caught.value).startswith(f"{name}: ") and "expected" in str(caught.value)


def test_a_bias_outside_the_vocabulary_is_refused():
    with pytest.raises(ParameterError, match="logit_bias: 53: no such token, expected 0 to 52"):
        Sampler(Sampling(logit_bias={53: 1.0}), V)


def test_the_options_of_chat_are_the_settings():
    """`SamplingOptions` types `Llava.chat`; the server alone sets a grammar and asks for log-probabilities."""
    declared, options = get_type_hints(Sampling), get_type_hints(SamplingOptions)
    assert set(declared) - set(options) == {"grammar", "top_logprobs"}
    assert options == {name: kind for name, kind in declared.items() if name in options} | {
        "logit_bias": declared["logit_bias"] | None
    }
    assert [f.name for f in fields(Sampling) if f.name in options] == list(options), "in one order"
    assert not SamplingOptions.__required_keys__


def test_none_is_the_default():
    assert Sampling.of(**dict.fromkeys(get_type_hints(SamplingOptions))) == Sampling()
    assert Sampling.of(top_k=0, temperature=0.5, seed=0) == Sampling(top_k=0, temperature=0.5, seed=0)


DECLARED = [setting for setting in fields(Sampling) if setting.metadata]


@pytest.mark.parametrize("setting", DECLARED, ids=lambda setting: setting.name)
def test_a_range_has_both_its_ends(setting):
    low, high = setting.metadata["low"], setting.metadata["high"]
    for value in (low, high):
        assert getattr(Sampling(**{setting.name: value}), setting.name) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ParameterError, match=f"{setting.name}: {value!r}: expected a .*number from"):
            Sampling(**{setting.name: value})
