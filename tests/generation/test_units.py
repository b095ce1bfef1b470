"""How a sequence is cut: a picture whose rows see one another is one unit, and every cut gives the same bits."""

from itertools import product

import numpy as np
import pytest

from llava_ref import load
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.generation.session import Session
from llava_ref.generation.units import BATCH, PictureRows, positions, units
from llava_ref.tracing.trace import Probe, Probes

from ..support.helpers import close, rand

ROWS = rand(23, 60)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    gemma = build_gemma3(tmp_path_factory.mktemp("gemma3"), Gemma3Spec(), SiglipSpec())
    llama = build(tmp_path_factory.mktemp("llama"), TextSpec(width=60, n_head=6, window=9), VisionSpec())
    return {"gemma3": gemma, "llama": llama}


def test_units_are_batches_of_a_part():
    rows, long = np.zeros((600, 3), np.float32), list(range(1030))
    parts = [[1, 2], rows, [], long]
    assert [len(unit) for unit in units(parts, whole_pictures=False)] == [2, 512, 88, 512, 512, 6]
    assert [len(unit) for unit in units(parts, whole_pictures=True)] == [2, 600, 512, 512, 6]
    assert units([rows[:0], [1]], whole_pictures=True) == [[1]] and BATCH == 512
    assert [token for unit in units([long], True) for token in unit] == long


def fed(model, parts, probes=None):
    return Session(model.text, probes=probes).feed(parts, all_logits=True)


@pytest.mark.parametrize("family, backend", list(product(["gemma3", "llama"], ["numpy", "torch"])))
def test_short_batches_change_little(pairs, family, backend, monkeypatch):
    """Batches of 5 cut text, and pictures where their rows do not see one another; the sums have another order."""
    model, parts = load(pairs[family].text, backend=backend), [[2, 5, 9], ROWS, list(range(20, 40))]
    whole = fed(model, parts)
    monkeypatch.setattr("llava_ref.generation.units.BATCH", 5)
    cut = Session(model.text)
    close(cut.feed(parts, all_logits=True), whole, 1e-5)
    lengths = [len(run.unit) for run in cut._run_units]
    assert lengths == [3, *([23] if family == "gemma3" else [5, 5, 5, 5, 3]), 5, 5, 5, 5]


class Whole(Probe):
    """A probe that sees a prompt's rows all at once."""

    whole = True

    def __init__(self):
        super().__init__(["embd"])
        self.rows = []

    def see(self, x, at):
        self.rows.append(len(x))
        return x


@pytest.mark.parametrize("family, backend", list(product(["gemma3", "llama"], ["numpy", "torch"])))
def test_a_prompt_seen_whole_gives_the_bits_of_its_units(pairs, family, backend, monkeypatch):
    """Two pictures, windows, and text cut in the middle: each unit sees what it would see in a pass of its own."""
    monkeypatch.setattr("llava_ref.generation.units.BATCH", 8)
    model, probe = load(pairs[family].text, backend=backend), Whole()
    parts = [[2, 5, 9], ROWS, list(range(20, 40)), ROWS[:7] + 1, [7]]
    np.testing.assert_array_equal(fed(model, parts, Probes(probe)), fed(model, parts))
    assert probe.rows == [3 + 23 + 20 + 7 + 1]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_rewind_never_keeps_half_a_picture(pairs, backend):
    model = load(pairs["gemma3"].text, backend=backend)
    session, other = Session(model.text), ROWS.copy()
    other[-1] += 1
    session.feed([[2, 5], ROWS, [7, 8]])
    rest = session.rewind([[2, 5], other, [7]])
    assert session.n_past == 2 and [len(part) for part in rest] == [23, 1]
    np.testing.assert_array_equal(session.feed(rest), Session(model.text).feed([[2, 5], other, [7]]))


def test_a_picture_does_not_see_another(pairs):
    """What the rows of the first become does not depend on the second, and of the second it does on the first."""
    model = load(pairs["gemma3"].text, backend="numpy")

    def hidden(first, second):
        with model.trace("blk.6.out") as trace:
            model.forward([[2], first, second])
        return trace["blk.6.out"]

    plain = hidden(ROWS[:4], ROWS[4:8])
    np.testing.assert_array_equal(hidden(ROWS[:4], -ROWS[4:8])[:5], plain[:5])
    assert np.abs(hidden(-ROWS[:4], ROWS[4:8])[5:] - plain[5:]).max() > 1e-3
    changed = ROWS[:4].copy()
    changed[3] *= -1
    assert np.abs(hidden(changed, ROWS[4:8])[1] - plain[1]).max() > 1e-3, "the first row sees the last"


def test_positions_of_a_grid():
    """A picture of 2 x 3 rows at 4 takes 3 positions, in one unit or in two; counted, it takes 6."""
    rows = PictureRows(np.zeros((6, 1)), (2, 3))
    whole, end = positions(rows, 4, True)
    assert whole.tolist() == [[4, 4, 4], [4, 4, 5], [4, 4, 6], [4, 5, 4], [4, 5, 5], [4, 5, 6]] and end == 7
    first, between = positions(rows[:4], 4, True)
    second, behind = positions(rows[4:], between, True)
    assert between == 4 and behind == 7 and np.array_equal(np.concatenate([first, second]), whole)
    assert positions([5, 6], 7, True)[0].tolist() == [[7, 7, 7], [8, 8, 8]]
    assert positions(rows, 4, False)[0].tolist() == [4, 5, 6, 7, 8, 9]
