"""Log-probabilities against a softmax written out."""

import math

import numpy as np
import pytest

from llava_ref.errors import ParameterError
from llava_ref.generation.sampler import Sampler
from llava_ref.generation.sampling import Sampling
from llava_ref.generation.scores import score, score_prompt

from ..support.helpers import rand


def softmax(x):
    x = np.exp(np.asarray(x, np.float64) - max(x))
    return x / x.sum()


def test_a_score_is_the_logarithm_of_the_softmax():
    logits = rand(37, seed=3) * 5
    order = np.argsort(-logits)
    for token in (0, 36, int(order[0]), int(order[-1])):
        got = score(logits, token, 4)
        assert got.token_id == token and got.logprob == pytest.approx(math.log(softmax(logits)[token]), rel=1e-12)
        assert got.rank == 1 + list(order).index(token)
        assert [i for i, _ in got.top] == [int(i) for i in order[:4]]
        assert got.top[0][1] == pytest.approx(math.log(softmax(logits).max()), rel=1e-12)


def test_equals_and_impossible_tokens():
    logits = np.array([1.0, 3.0, 3.0, -np.inf], np.float32)
    assert score(logits, 2, 2).rank == 1 and [i for i, _ in score(logits, 2, 2).top] == [1, 2]
    assert score(logits, 3).logprob == -math.inf and score(logits, 3).top == ()
    assert len(score(logits, 0, 20).top) == 4, "no more than there are"


def test_huge_logits_do_not_overflow():
    assert score(np.array([1e30, 0.0]), 0).logprob == 0.0


def test_a_prompt_is_scored_by_what_stands_before_each_token():
    logits, ids = rand(5, 7, seed=1), [3, -1, -1, 6, 2]
    scores = score_prompt(logits, ids, 1)
    assert scores[:3] == [None, None, None]
    assert scores[3] == score(logits[2], 6, 1), "the row of the position before it, a picture's here"
    assert scores[4] == score(logits[3], 2, 1)


def test_the_sampler_reports_the_models_own_numbers():
    logits = rand(11, seed=2)
    sampling = Sampling(temperature=0.7, top_k=2, seed=1, logit_bias={4: 100.0}, top_logprobs=3)
    sampler = Sampler(sampling, 11)
    assert sampler.score(logits, sampler.pick(logits)) == score(logits, 4, 3)
    assert Sampler(Sampling(), 11).score(logits, 4) is None


@pytest.mark.parametrize("top", [-1, 21, 1.0, True])
def test_top_logprobs_has_a_range(top):
    with pytest.raises(ParameterError, match="top_logprobs"):
        Sampling(top_logprobs=top)


class Only:
    """A grammar of one sentence."""

    def __init__(self, *ids):
        self.ids, self.taken = ids, []

    cut = False

    def start(self, limit):
        return self

    def instead(self, token_id):
        return None

    def allowed(self):
        mask = np.zeros(11, bool)
        mask[self.ids[len(self.taken)]] = True
        return mask

    def accept(self, token_id):
        self.taken.append(token_id)


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "top_k": 1, "top_p": 0.1, "min_p": 0.9, "seed": 0}])
def test_a_grammar_comes_before_every_stage(settings):
    grammar = Only(9, 0, 5)
    sampler = Sampler(Sampling(grammar=grammar, repeat_penalty=2.0, **settings), 11, history=[9])
    assert [sampler.pick(rand(11, seed=i)) for i in range(3)] == [9, 0, 5] == grammar.taken
