"""The oracle itself: what it does with failures, and that what it hands over is what was asked for."""

from pathlib import Path

import numpy as np
import pytest

from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.writing import write
from llava_ref.tracing.distance import kl, max_abs, rel_rms

reason = oracle.missing()
needs_llama = pytest.mark.skipif(bool(reason), reason=str(reason))
pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> pairs.Pair:
    return pairs.build(tmp_path_factory.mktemp("pair"), pairs.TextSpec(), pairs.VisionSpec())


@needs_llama
def test_a_crash_is_an_error_that_names_the_signal(pair: pairs.Pair, tmp_path: Path) -> None:
    spec = pairs.VisionSpec()
    tensors = pairs.vision_tensors(spec, 48, pairs.Random(0, 1.0))
    del tensors["v.patch_embd.weight"]
    write(tmp_path / "bad.gguf", pairs.vision_metadata(spec, 48), tensors)
    with pytest.raises(oracle.OracleError, match="ended by SIGSEGV|cannot load"):
        oracle.Oracle(pair.text, tmp_path / "bad.gguf").encode([np.zeros((9, 9, 3), np.uint8)])


@needs_llama
def test_a_refused_file_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(oracle.OracleError, match=r"cannot load bad\.gguf; .*failed to load"):
        oracle.Oracle(tmp_path / "bad.gguf").tokenize(["a"])


@needs_llama
def test_a_slow_answer_is_an_error(pair: pairs.Pair) -> None:
    with pytest.raises(oracle.OracleError, match="no answer after 0.001 s"):
        oracle.Oracle(pair.text, timeout=0.001).tokenize(["a"])


def test_an_absent_package_is_an_error(pair: pairs.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "missing", lambda: "xllamacpp not installed")
    with pytest.raises(oracle.OracleError, match="xllamacpp not installed"):
        oracle.Oracle(pair.text).tokenize(["a"])


@needs_llama
def test_every_answer_is_the_same_twice(pair: pairs.Pair) -> None:
    first, second = oracle.Oracle(pair.text).logits([[[1, 300, 301]], [[1, 300, 301]]], greedy=3)
    assert (first.logits == second.logits).all() and first.tokens == second.tokens
    assert first.tokens[0] == first.logits[-1].argmax()


@needs_llama
def test_captured_tensors_are_named_numbered_and_in_torch_order(pair: pairs.Pair) -> None:
    (found,) = oracle.Oracle(pair.text).logits([[[1, 300, 301]]], capture=["Qcur-0", "result_output", "inp_embd"])
    assert [(t.name, t.op) for t in found.tensors] == [
        ("Qcur-0", "MUL_MAT"),
        ("Qcur-0#1", "RESHAPE"),
        ("Qcur-0#2", "ROPE"),
        ("result_output", "MUL_MAT"),
    ]
    linear, reshaped, roped, output = (t.array for t in found.tensors)
    assert linear.shape == (3, 48) and reshaped.shape == roped.shape == (3, 4, 12)
    assert (output == found.logits).all()
    assert (linear.reshape(3, 4, 12) == reshaped).all() and (roped[0] == reshaped[0]).all()  # position 0: no turn
    assert not (roped[1] == reshaped[1]).any()


@needs_llama
def test_a_callback_changes_no_number(pair: pairs.Pair) -> None:
    plain, watched = (oracle.Oracle(pair.text).logits([[[1, 300, 301]]], capture=c)[0] for c in ([], ["*"]))
    assert (plain.logits == watched.logits).all()


@needs_llama
def test_a_prompt_goes_the_whole_way(pair: pairs.Pair) -> None:
    llama, rgb = oracle.Oracle(pair.text, pair.mmproj), np.full((20, 30, 3), 200, np.uint8)
    whole = llama.prompt("what is <__media__>the color", [rgb], greedy=4)
    before, n_rows, after = whole.chunks
    assert n_rows == 16 and isinstance(before, tuple) and isinstance(after, tuple)
    (image,) = llama.encode([rgb])
    (parts,) = llama.logits([[before, image.rows, after]], greedy=4)
    assert (whole.logits == parts.logits).all() and whole.tokens == parts.tokens
    assert llama.version["xllamacpp"].endswith(".11549")


def test_pairs_are_the_same_from_the_same_seed(pair: pairs.Pair, tmp_path: Path) -> None:
    again = pairs.build(tmp_path, pairs.TextSpec(), pairs.VisionSpec())
    assert again.text.read_bytes() == pair.text.read_bytes()
    other = pairs.build(tmp_path, pairs.TextSpec(), pairs.VisionSpec(), seed=1)
    assert other.text.read_bytes() != pair.text.read_bytes()


def test_measures() -> None:
    a = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 9.0]], np.float32)
    assert rel_rms(a * 1.01, a) == pytest.approx(0.01, rel=1e-5)
    assert max_abs(a * 1.01, a) == pytest.approx(0.09, rel=1e-5)
    assert kl(a + 5, a).max() < 1e-12 < kl(a * 1.1, a).min()
    assert np.isnan(rel_rms(a * np.nan, a))
    with pytest.raises(ValueError, match="shape"):
        rel_rms(a[:1], a)
