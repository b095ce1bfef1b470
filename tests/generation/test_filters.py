"""The likeliest tokens alone decide as the whole vocabulary does, or say that they cannot."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from llava_ref.generation.filters import keep_top_p, shortlist
from llava_ref.generation.sampler import Sampler
from llava_ref.generation.sampling import Sampling

from ..support.helpers import rand

V, K = 500, 40


@dataclass
class OnDevice:
    """Logits whose K likeliest are on the host; `fetched` counts how often all were asked for."""

    logits: np.ndarray
    finite: bool = True
    fetched: int = 0

    def __post_init__(self) -> None:
        self.ids = np.sort(np.argsort(-self.logits, kind="stable")[:K])
        self.values = self.logits[self.ids]
        x = self.logits.astype(np.float64)
        self.total = float(np.log(np.exp(x - x.max()).sum()) + x.max())

    def __len__(self) -> int:
        return len(self.logits)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.fetched += 1
        return self.logits


CERTAIN = [
    dict(),
    dict(repeat_penalty=1.3),
    dict(temperature=1.0, top_k=10),
    dict(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05),
    dict(temperature=1.0, top_k=12, repeat_penalty=1.5, frequency_penalty=0.4, presence_penalty=0.2),
    dict(temperature=1.0, top_p=0.5),
    dict(temperature=1.5, min_p=0.2),
    dict(temperature=0.9, top_p=0.6, min_p=0.1),
]


@pytest.mark.parametrize("settings", CERTAIN, ids=str)
def test_the_likeliest_decide_as_all_tokens_do(settings):
    plain, short = (Sampler(Sampling(seed=3, **settings), V, [1, 2, 3]) for _ in range(2))
    fetched = 0
    for i in range(60):
        logits = rand(V, seed=i) * 3
        there = OnDevice(logits)
        assert short.pick(there) == plain.pick(logits)
        fetched += there.fetched
    assert fetched <= 3  # a rare draw of logits is too flat


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=1.0),
        dict(temperature=1.0, top_p=0.9999),
        dict(temperature=1.0, top_k=K),
        dict(temperature=1.0, top_k=K + 1, top_p=0.1),
        dict(temperature=1.0, min_p=1e-6),
        dict(temperature=1.0, top_p=0.5, repeat_penalty=1.1),
        dict(repeat_penalty=0.5),
        dict(presence_penalty=-1.0),
        dict(logit_bias={7: 50.0}),
    ],
    ids=str,
)
def test_all_logits_are_fetched_where_another_token_may_matter(settings):
    logits = rand(V, seed=1) * 3
    there, sampling = OnDevice(logits), Sampling(seed=5, **settings)
    assert Sampler(sampling, V).pick(there) == Sampler(sampling, V).pick(logits)
    assert there.fetched == 1


def test_a_penalty_that_takes_the_likeliest_below_the_others_is_seen():
    logits = np.zeros(V, np.float32)
    logits[: K - 1], logits[K - 1] = 1.0, 0.5
    everything = list(range(K)) * 2
    assert shortlist(OnDevice(logits), everything, Sampling(presence_penalty=2.0)) is None
    assert shortlist(OnDevice(logits), [], Sampling()) is not None


def test_of_equals_the_lowest_id_is_taken():
    logits = np.zeros(V, np.float32)
    logits[[300, 20, 444]] = 2.0
    assert Sampler(Sampling(), V).pick(OnDevice(logits)) == 20


def test_where_the_likeliest_are_all_alike_all_logits_are_fetched():
    there = OnDevice(np.ones(V, np.float32))
    assert Sampler(Sampling(), V).pick(there) == 0 and there.fetched == 1


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9, 0.999, 0.99999])
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 8.0])
def test_top_p_is_that_of_a_full_sort(p, spread):
    """Over flat and steep logits, with equals and with tokens that are out: few or all must be looked at."""
    rng = np.random.default_rng(3)
    x = np.round(rng.standard_normal(9000) * spread, 2)
    x[rng.permutation(9000)[:2000]] = -np.inf
    order = np.argsort(-x, kind="stable")
    probabilities = np.exp(x[order] - x.max())
    count = 1 + int((np.cumsum(probabilities / probabilities.sum())[:-1] < p).sum())
    kept = np.flatnonzero(keep_top_p(x, p) > -np.inf)
    want = np.sort(order[:count][x[order[:count]] > -np.inf])
    assert abs(len(kept) - len(want)) <= 1, "the sum's last bits may decide about one"
    np.testing.assert_array_equal(kept, np.sort(order[: len(kept)]))
    np.testing.assert_array_equal(keep_top_p(x, p)[kept], x[kept])
