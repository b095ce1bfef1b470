"""`conform` against transformers, from the same GGUF pair: alike in its own profile, else for known reasons."""

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.conformance.compare.conform import Conformance, conform
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.reference import Case

reason = reference_hf.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
TEXT, MMPROJ = llava_ref.embedded()
QUESTION = "USER: <image>\nHow many shapes are there? ASSISTANT:"


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "tall.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (111, 70, 3), np.uint8)).save(path)
    return Case(TEXT, MMPROJ, (path,), QUESTION)


@pytest.fixture(scope="module")
def run(case):
    return Transformers().run(case, n_greedy=4)


def compared(case, run, **settings) -> Conformance:
    return conform(lambda q: llava_ref.load(TEXT, MMPROJ, quirks=q, **settings), case, run)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_in_its_profile_every_stage_agrees(case, run, within, backend):
    report = compared(case, run, profile="hf", backend=backend)
    assert report.same and len([stage for stage in report.stages if stage.own]) > 110
    within("conform, embedded pair: KL of exact and transformers, nats", max(report.outcome.kl), 1e-9)


def test_the_original_s_padding_and_tokens_are_named(case, run):
    square, pieces = compared(case, run, profile="llava").findings
    assert square.stage == "image.seen" and square.explained == ("square=crop",)
    assert pieces.stage == "token_ids" and pieces.explained == ("text_pieces=whole",)


def test_precision_ggml_is_out_only_where_it_rounds(case, run):
    """Against float32 only the stages that ggml rounds need the wide bounds."""
    report = compared(case, run, profile="hf", precision="ggml")
    assert not report.findings
    rounded = [stage for stage in report.stages if stage.own and stage.own.rel_rms > 1e-5]
    assert {stage.kind for stage in rounded} <= {"matmul", "table", "attention"} and len(rounded) > 30
