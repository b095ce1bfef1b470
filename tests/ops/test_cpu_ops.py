"""Whole models in precision `fast` on a processor: against float32, and a compiled step against `forward`."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from PIL import Image

from llava_ref import embedded, load
from llava_ref.conformance.compare.conform import conform
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.engines.this import ThisProject
from llava_ref.errors import NumericsError, ParameterError
from llava_ref.generation.session import Session
from llava_ref.ops import get_ops
from llava_ref.tracing.trace import Probes, Trace

from ..support.fast_pairs import PICTURE, PROMPT, TEXTS, builder
from ..support.helpers import close, rel_rms

TOKENS = [12, 200, 7]
NAMES = [*(name for name in TEXTS if "MXFP4" not in name), "gemma3"]
STEPPED = [name for name in NAMES if not name.startswith("no kernel")]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return a function that builds a pair once."""
    return builder(tmp_path_factory.mktemp)


def fast(pair, **settings):
    return load(pair.text, pair.mmproj, precision="fast", **settings)


def watched(model):
    """Return a session that runs operation by operation."""
    return Session(model.text, probes=Probes(Trace(("embd",), model.ops)))


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_close_to_float32(pairs, name):
    exact, quick = (load(pairs(name).text).session(), fast(pairs(name)).session())
    want, got = (session.feed([PROMPT], all_logits=True) for session in (exact, quick))
    assert 1e-6 < rel_rms(got, want) < 5e-2


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_is_what_forward_computes_bit_for_bit(pairs, name):
    """The same tokens one by one: by the compiled step, and by `forward` because somebody watches."""
    model = fast(pairs(name))
    seen, stepped = watched(model), model.session()
    for session in (seen, stepped):
        session.feed([PROMPT])
    for token in TOKENS:
        np.testing.assert_array_equal(stepped.next([[token]]), seen.next([[token]]))
    assert seen.n_past == stepped.n_past == len(PROMPT) + len(TOKENS)


@pytest.mark.parametrize("name", STEPPED)
def test_steps_are_as_exact_as_their_cache(pairs, name):
    """Few rows are multiplied to 5e-5: what is left against float32 is the float16 of keys and values."""
    exact, quick = load(pairs(name).text).session(), fast(pairs(name)).session()
    for token in PROMPT[:4]:
        want, got = exact.next([[token]]), quick.next([[token]])
        close(np.asarray(got), want, 2e-3)


@pytest.mark.parametrize("name", ["grouped heads, Q8_0", "biases, F16", "gemma3"])
def test_sequences_that_share_a_step_change_no_bit_of_one_another(pairs, name):
    model = fast(pairs(name))
    prompts = [PROMPT[:n] for n in (1, 4, 7, 11, 2)]
    alone, together = ([model.session() for _ in prompts] for _ in range(2))
    for session, prompt in zip(alone + together, prompts + prompts, strict=True):
        session.feed([prompt])
    steppers = [session._stepper for session in together]
    for round in range(3):
        tokens = [5 + round, 9, 70, 33, 200]
        found = model.ops.step_together(steppers, tokens)
        for session, token, got in zip(alone, tokens, found, strict=True):
            np.testing.assert_array_equal(got, session.next([[token]]))


@pytest.mark.parametrize("name", ["grouped heads, Q8_0", "gemma3"])
def test_the_number_of_threads_changes_no_bit(pairs, name):
    found = []
    for threads in (1, 2, 3):
        session = fast(pairs(name), threads=threads).session()
        session.feed([PROMPT[:3]])
        found.append(np.stack([session.next([[token]]).copy() for token in TOKENS]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_sequence_outgrows_its_tables_and_its_cache(pairs, monkeypatch):
    """Room is doubled: of the cache from 4 positions, of the rotary angles from 2."""
    monkeypatch.setattr("llava_ref.ops.cpu.cache.FIRST_ROOM", 4)
    monkeypatch.setattr("llava_ref.ops.cpu.stepper.FIRST_ROOM", 2)
    model = fast(pairs("grouped heads, Q8_0"))
    stepped, seen = model.session(), watched(model)
    for token in PROMPT * 3:
        np.testing.assert_array_equal(stepped.next([[token]]), seen.next([[token]]))


@pytest.mark.parametrize("name", ["grouped heads, Q8_0", "gemma3"])
def test_a_picture_is_close_to_float32(pairs, name):
    exact, quick = load(pairs(name).text, pairs(name).mmproj), fast(pairs(name))
    assert 1e-6 < rel_rms(quick.encode_image(PICTURE), exact.encode_image(PICTURE)) < 3e-2


@pytest.mark.parametrize("name", ["grouped heads, Q8_0", "gemma3"])
def test_every_stage_is_within_the_bounds_of_fast(pairs, name, tmp_path):
    """Each stage by itself, from float32's inputs: conform names none, and sees that none is float32 either."""
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    pair, profile = pairs(name), "hf" if name == "gemma3" else "llava"
    case = Case(pair.text, pair.mmproj, (tmp_path / "picture.png",), "<image>\nWhat is red in the picture?")
    model = fast(pair, profile=profile)
    report = conform(lambda changed: model, case, ThisProject(profile=profile).run(case))
    assert not report.findings and report.n_compared > 50
    worst = {
        kind: max(s.own.rel_rms for s in report.stages if s.own and s.kind == kind) for kind in ("matmul", "float")
    }
    assert worst["matmul"] > 1e-4 and worst["float"] < 1e-6


def test_the_embedded_pair_goes_on_with_the_same_token():
    exact, quick = load(*embedded()), load(*embedded(), precision="fast")
    picture = embedded()[0].parent / "pictures" / "count.png"
    ask = [{"type": "image", "image": picture}, {"type": "text", "text": "Count the stars."}]
    parts = [model.parts(model.request([{"role": "user", "content": ask}])) for model in (exact, quick)]
    assert 1e-6 < rel_rms(parts[1][1].data, parts[0][1].data) < 2e-2  # the picture's rows
    want, got = (model.session().feed(whole) for model, whole in zip((exact, quick), parts, strict=True))
    assert rel_rms(got, want) < 3e-2 and got.argmax() == want.argmax()


def test_attention_weights_can_be_seen(pairs):
    model = fast(pairs("gemma3"))
    with model.trace("blk.0.kq_soft_max", "blk.1.kqv_out") as trace:
        model.session().feed([PROMPT])
    np.testing.assert_allclose(trace["blk.0.kq_soft_max"].sum(-1), 1, atol=1e-3)


def test_bad_numbers_of_a_step_are_named(pairs):
    model = fast(pairs("grouped heads, Q8_0"))
    session = model.session()
    session.next([[5]])
    model.text.weights.blocks[1].ffn_norm[3] = float("nan")
    with pytest.raises(NumericsError, match="blk.1.ffn_norm"):
        session.next([[7]])


def test_a_model_without_a_kernel_for_its_type_has_no_step(pairs):
    model = fast(pairs("no kernel for NVFP4"))
    assert model.session()._stepper is None


def test_one_line_says_what_multiplies_and_what_fell_back(pairs):
    said = fast(pairs("three types side by side")).ops.kernels()
    assert all(kind in said for kind in ("Q4_0", "Q4_K", "Q6_K", "Q5_K")) and "no kernel" not in said
    assert (
        "no kernel, so dequantised at every use: NVFP4 (16 matrices)"
        in fast(pairs("no kernel for NVFP4")).ops.kernels()
    )


def test_numpy_has_no_fast():
    with pytest.raises(ParameterError, match="needs backend torch"):
        get_ops("numpy", "cpu", 1, 0, "fast")


def test_a_level_that_is_none_is_one_line():
    code = "import sys; from llava_ref.cli import main; sys.exit(main(['generate', '-p', 'x', '--precision', 'fast']))"
    environment = os.environ | {"LLAVA_REF_SIMD": "sse9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "LLAVA_REF_SIMD: 'sse9', expected one of amx, avx512, avx2, portable" in done.stderr


def test_without_llvmlite_one_line_says_what_to_install():
    """In a process of its own: here llvmlite is there already."""
    code = """
import sys
sys.modules["llvmlite"] = None
from llava_ref.cli import main
sys.exit(main(["generate", "--precision", "fast", "-p", "x"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: precision: 'fast': ")
    assert "the fast extra is missing: pip install" in done.stderr
