"""What `conform` says of an array that no quirk explains: each guess, on arrays and in a run, or nothing."""

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.conformance.compare.conform import conform
from llava_ref.conformance.compare.likeness import likeness
from llava_ref.conformance.engines.reference import Case, Run
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.tools.findings import verdict

from ...support.helpers import rand

X, Y = rand(9, 24), rand(9, 24, seed=1)
HEADS = rand(4, 9, 9, seed=2)
HALVES = np.arange(24).reshape(3, 2, 4).swapaxes(1, 2).ravel()  # three heads of 8
BLOCKS = np.arange(24).reshape(3, 8)[[2, 0, 1]].ravel()
SHUFFLED = np.random.default_rng(3).permutation(24)
NOISE = 1e-7 * rand(9, 24, seed=4)
GUESSES = {
    "with the other sign": (X, -X),
    "times 0.125": (X, X / 8),
    "rounded to float16": (X, X.astype(np.float16)),
    "rounded to bfloat16": (X, (X.view(np.uint32) & 0xFFFF0000).view(np.float32)),
    "plus the same numbers in every row: a bias left out, or one too many": (X, X + Y[0]),
    "one row later": (X, np.roll(X, 1, 0)),
    "one row earlier": (X, np.concatenate([X[1:], Y[:1]])),
    "transposed": (X, X.T.copy()),
    "with its rows the other way round": (X, X[::-1]),
    "with its rows in another order: 2, 0, 1, 3, 4, 5, ...": (X, X[[2, 0, 1, *range(3, 9)]]),
    "with its heads in another order: 1, 0, 3, 2": (HEADS, HEADS[[1, 0, 3, 2]]),
    "with its channels in another order: heads, or blocks of 8: 2, 0, 1": (X, X[:, BLOCKS]),
    "with its channels in another order: within every 8, halves are adjacent pairs, as rope has them in other files": (
        X, X[:, HALVES]),
    "with its channels in another order: within every 8, adjacent pairs are halves, as rope has them in other files": (
        X, X[:, np.argsort(HALVES)]),
    f"with its channels in another order: {', '.join(map(str, SHUFFLED[:6]))}, ...": (X, X[:, SHUFFLED]),
}  # fmt: skip


@pytest.mark.parametrize("said", GUESSES)
def test_each_guess_is_said(said):
    mine, theirs = GUESSES[said]
    name = "blk.0.kq_soft_max" if mine.ndim == 3 else "blk.0.out"
    if mine.shape == NOISE.shape and "rounded" not in said:
        mine = mine + NOISE
    assert likeness(name, {name: mine}, {name: theirs}, 2e-6) == f"the reference's is this run's {said}"


def test_another_stage_and_an_exchange():
    ours = {"a": X, "b": Y, "c": Y + 1}
    assert likeness("a", ours, {"a": Y}, 2e-6) == "the reference's is this run's b"
    both = likeness("a", ours, {"a": Y, "b": X}, 2e-6)
    assert both == "the reference's is this run's b, and that is this one: the two are exchanged"


@pytest.mark.parametrize(
    "mine, theirs",
    [
        (X, Y),
        (X, X + 1e-3 * Y),
        (X, X * np.float32(2) + Y / 10),
        (X, X[:, :12]),
        (X, X * np.nan),
        (X, X * 0),
        (X * 0, Y),
        (X, np.where(np.arange(24) < 12, X, Y)),
        (X[:1], Y[:1]),
    ],
    ids=["nothing", "noise", "a factor and more", "half", "NaN", "zeros", "of zeros", "half of it", "one row"],
)
def test_what_no_guess_fits_stays_unexplained(mine, theirs):
    assert likeness("a", {"a": mine}, {"a": theirs}, 2e-6) is None


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    pair = build(folder, TextSpec(), VisionSpec())
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)).save(folder / "a.png")
    return Case(pair.text, pair.mmproj, (folder / "a.png",), "what<image> is the color")


def loaded(case, changed=None):
    return llava_ref.load(case.text, case.mmproj, backend="numpy", threads=1, quirks=dict(changed or {}))


def run_with(case, edits):
    """Run the same program with arrays changed on the way: another engine with a fault."""
    model = loaded(case)
    request = model.raw_request(case.prompt, case.images)
    with model.intervene(edits), model.trace("*", "*kq_soft_max") as trace:
        model.request_logits(request)
    about = {"arithmetic": "float32", "attention": "float32"}
    return Run("faulty", about, dict(trace), tuple(request.token_ids), ())


FAULTS = {
    "blk.1.ffn_up": (lambda x: x * -1, "the reference's is this run's with the other sign"),
    "blk.0.attn_out": (lambda x: x * 0.5, "the reference's is this run's times 0.5"),
    "blk.2.attn_norm": (lambda x: x[::-1] * 1, "the reference's is this run's with its rows the other way round"),
    "vision.blk.1.ffn_out": (
        lambda x: x + rand(40, seed=7),
        "the reference's is this run's plus the same numbers in every row: a bias left out, or one too many",
    ),
    "vision.blk.0.Qcur": (
        lambda x: x[:, np.arange(40).reshape(4, 10)[[1, 0, 3, 2]].ravel()],
        "the reference's is this run's with its channels in another order: heads, or blocks of 10: 1, 0, 3, 2",
    ),
}


@pytest.mark.parametrize("stage", FAULTS)
def test_conform_names_a_planted_fault(asked, stage):
    edit, said = FAULTS[stage]
    report = conform(lambda changed: loaded(asked, changed), asked, run_with(asked, {stage: edit}))
    assert (report.findings[0].stage, report.findings[0].likeness) == (stage, said)
    assert f"     no known quirk explains it; {said}" in verdict(report)


def test_conform_names_stages_that_are_exchanged(asked):
    """The two are edited where they are made; what follows of them is of no concern here."""
    model = loaded(asked)
    request = model.raw_request(asked.prompt, asked.images)
    with model.trace("blk.1.ffn_gate", "blk.1.ffn_up") as trace:
        model.request_logits(request)
    edits = {"blk.1.ffn_gate": lambda x: trace["blk.1.ffn_up"], "blk.1.ffn_up": lambda x: trace["blk.1.ffn_gate"]}
    report = conform(lambda changed: loaded(asked, changed), asked, run_with(asked, edits))
    assert report.findings[0].likeness == (
        "the reference's is this run's blk.1.ffn_up, and that is this one: the two are exchanged"
    )


def test_conform_says_nothing_of_a_fault_that_no_guess_fits(asked):
    report = conform(lambda changed: loaded(asked, changed), asked, run_with(asked, {"blk.1.out": lambda x: x**3}))
    assert report.findings[0].stage == "blk.1.out" and report.findings[0].likeness is None
    assert "     no known quirk explains it" in verdict(report)
