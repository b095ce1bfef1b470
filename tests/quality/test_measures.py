"""Figures of the quantisation report over differences made by hand."""

import numpy as np
import pytest

from llava_ref.quality import behaviour, ranking
from llava_ref.quality.behaviour import Difference, Spread, spread
from llava_ref.quality.cases import QualityCase
from llava_ref.quality.report import same_answer

from ..support.helpers import close, rel_rms


def made(kls, answers, same=None):
    values = np.array(kls, np.float64)
    same = np.ones(len(values), bool) if same is None else np.array(same)
    return Difference(np.zeros(0), 0.0, values, same, np.array(answers))


def test_spread():
    two = [made([0.0, 4.0], [False, True]), made([1.0], [True], [False])]
    assert spread(two) == Spread(n=3, mean=5 / 3, max=4.0, typical=1.0, top_1=2 / 3)
    assert spread(two, True) == Spread(n=2, mean=2.5, max=4.0, typical=2.25, top_1=0.5)
    assert spread(two, False) == Spread(1, 0.0, 0.0, 0.0, 1.0)
    assert spread([]) is None and spread([made([], np.zeros(0, bool))], True) is None
    assert same_answer(two[0]) and not same_answer(two[1])
    assert same_answer(made([1.0, 1.0], [False, True], [False, True])), "a question is not an answer"


def test_cosines_of_rows():
    a, b = np.array([[1.0, 0.0], [0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 2.0], [0.0, 0.0], [6.0, 8.0]])
    case = QualityCase("", "", "", (), (), (), 0, np.zeros(0, np.int64), ())
    d = behaviour.difference(case, behaviour.PairOutput((a,), None), behaviour.PairOutput((b,), None))
    close(d.cosines, np.array([0.0, 1.0, 1.0]), 1e-12)
    assert d.rows_rel_rms == pytest.approx(rel_rms(a, b))


def test_what_takes_no_bytes_comes_first():
    none, some = Spread(1, 0.0, 0.0, 0.0, 1.0), Spread(1, 0.1, 0.1, 0.1, 1.0)
    assert ranking.Ranked("a", ("a",), some, 0).per_mib == np.inf
    assert ranking.Ranked("a", ("a",), none, 0).per_mib == 0
    assert ranking.Ranked("a", ("a",), some, 1 << 19).per_mib == pytest.approx(0.2)
