"""The summary of a row of logits against numpy and float64."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from llava_ref.kernels.triton.scores import BLOCK, Summary, summarise

from ..support.helpers import rand
from ..support.triton_device import DEVICE

SIZES = (1, 7, 768, BLOCK, BLOCK + 1, 32000, 32003)
infinities = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")  # numpy, interpreter


def run(logits: np.ndarray, out: Summary | None = None) -> tuple[int, int, float]:
    """Return finite, best, total of logits (V,), with larger numbers beside them in memory."""
    memory = torch.full((len(logits) + 2 * BLOCK,), 1e30)
    memory[BLOCK:-BLOCK] = torch.from_numpy(logits)
    row = memory.to(DEVICE)[BLOCK:-BLOCK][None]
    s = summarise(row, out or Summary.empty(len(logits), DEVICE))
    return int(s.finite), int(s.best), float(s.total)


def logsumexp(x: np.ndarray) -> float:
    return float(np.logaddexp.reduce(x.astype(np.float64)))


@pytest.mark.parametrize("V", SIZES)
@pytest.mark.parametrize(("size", "shift"), [(3.0, 0.0), (0.0, -2.0), (12.0, -30.0), (0.01, 5.0)])
def test_ordinary_logits(V: int, size: float, shift: float) -> None:
    x = (size * rand(V) + shift).astype(np.float32)
    finite, best, total = run(x)
    assert (finite, best) == (1, int(np.argmax(x)))
    want = logsumexp(x)
    assert abs(total - want) <= max(
        1e-6, 0.6 * float(np.spacing(np.float32(abs(want))))
    )  # 0.6: it is rounded to float32


@pytest.mark.parametrize("V", SIZES)
def test_the_first_and_the_last_logit_can_be_the_largest(V: int) -> None:
    for at in (0, V - 1):
        x = rand(V)
        x[at] = 9.0
        assert run(x)[1] == at


@pytest.mark.parametrize(("low", "high"), [(5, 6), (5, BLOCK), (BLOCK - 1, BLOCK), (3 * BLOCK + 7, 7 * BLOCK)])
def test_the_lowest_id_among_equals_is_the_best(low: int, high: int) -> None:
    x = rand(32003)
    x[[low, high, 32002]] = 20.0
    assert run(x)[:2] == (1, low)


@infinities
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("V", "at"), [(1, 0), (7, 6), (32003, 0), (32003, 4 * BLOCK), (32003, 32002)])
def test_one_logit_that_is_not_finite_is_found(bad: float, V: int, at: int) -> None:
    x = rand(V)
    x[at] = bad
    finite, best, total = run(x)
    assert finite == 0 and np.isnan(total)
    assert best == int(np.argmax(np.nan_to_num(x, nan=-np.inf, posinf=np.inf, neginf=-np.inf)))


@infinities
def test_logits_without_a_single_number() -> None:
    for x in (np.full(5000, np.nan, np.float32), np.full(5000, -np.inf, np.float32)):
        finite, best, _ = run(x)
        assert (finite, best) == (0, 0)


@infinities
def test_a_summary_is_used_again_for_the_next_token() -> None:
    out, x = Summary.empty(32003, DEVICE), rand(32003)
    first = run(x, out)
    assert run(np.where(x > 3, np.nan, x).astype(np.float32), out)[0] == 0
    assert run(-x, out)[1] == int(np.argmin(x))
    assert run(x, out) == first
    assert int(out.counts[0]) == 0


def test_extreme_logits_do_not_overflow() -> None:
    x = np.array([1.5e38, -1.5e38, 0, 1.5e38], np.float32)
    assert run(x)[:2] == (1, 0)
    assert run(x)[2] == np.float32(1.5e38)


def test_a_launch_refuses_what_it_would_read_wrongly() -> None:
    x, out = torch.zeros(1, 64, device=DEVICE), Summary.empty(64, DEVICE)
    for bad in (x[0], x.half(), x[:, ::2], x.expand(2, 64)):
        with pytest.raises(ValueError, match="^logits: "):
            summarise(bad, out)
    with pytest.raises(ValueError, match="^out: "):
        summarise(torch.zeros(1, BLOCK + 1, device=DEVICE), out)
