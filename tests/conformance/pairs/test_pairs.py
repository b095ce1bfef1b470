"""Random pairs: of any type, single matrices of another, with a vocabulary of their own."""

import gguf
import numpy as np
import pytest

from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.pairs import ROUNDED, TextSpec, VisionSpec
from llava_ref.conformance.pairs.vocabulary import n_vocab
from llava_ref.errors import ParameterError

from ...support.helpers import rel_rms

WIDE = TextSpec(width=256, n_layer=1, n_head=8, mlp_width=512, words=("the", "red"))
TOWER = VisionSpec(width=64, n_block=1, mlp_width=128, middle=64)


def tensors(path):
    """Read each tensor's type and weights. These are copies, because a reader's arrays are the file itself."""
    read = gguf.GGUFReader(path).tensors
    return {t.name: (t.tensor_type.name, np.array(gguf.dequantize(t.data, t.tensor_type))) for t in read}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tensors(pairs.build(tmp_path_factory.mktemp("pair"), WIDE, TOWER).text)


def of_kind(tmp_path, kind, **changes):
    spec = TextSpec(**{name: getattr(WIDE, name) for name in WIDE.__slots__} | {"kind": kind} | changes)
    return tensors(pairs.build(tmp_path, spec, TOWER).text)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q5_K", "IQ1_M", "TQ2_0", "MXFP4", "NVFP4"])
def test_matrices_of_a_type_have_the_size_they_would_have(plain, tmp_path, kind):
    found = of_kind(tmp_path, kind)
    assert list(found) == list(plain)
    for name, (stored, weights) in found.items():
        matrix = weights.ndim == 2
        assert stored == (kind if matrix else "F32"), name
        assert weights.shape == plain[name][1].shape
        if matrix:
            assert 0.6 < weights.std() / plain[name][1].std() < 1.5, name
            assert (rel_rms(weights, plain[name][1]) < 0.1) == (kind in ROUNDED), name
        else:
            np.testing.assert_array_equal(weights, plain[name][1])


def test_the_first_pattern_that_fits_gives_the_type(tmp_path):
    kinds = (("blk.*.ffn_down.weight", "IQ3_S"), ("blk.*.ffn_*", "F16"), ("*.bias", "Q8_0"), ("*norm*", "Q8_0"))
    found = of_kind(tmp_path, "F32", kinds=kinds, biases=True)
    types = {name: kind for name, (kind, _) in found.items()}
    assert types["blk.0.ffn_down.weight"] == "IQ3_S" and types["blk.0.ffn_up.weight"] == "F16"
    assert {kind for name, kind in types.items() if "ffn" not in name or "bias" in name or "norm" in name} == {"F32"}


def test_two_matrices_of_a_type_differ_and_a_seed_is_a_pair(tmp_path):
    found = [of_kind(tmp_path, "IQ2_S") for _ in range(2)]
    up, gate = (found[0][f"blk.0.ffn_{name}.weight"][1] for name in ("up", "gate"))
    assert rel_rms(up, gate) > 1
    np.testing.assert_array_equal(up, found[1]["blk.0.ffn_up.weight"][1])


def test_rows_that_do_not_fill_the_blocks(tmp_path):
    with pytest.raises(
        ParameterError, match=r"Q6_K: v\.blk\.0\.attn_q\.weight has rows of 64, expected a multiple of 256"
    ):
        pairs.build(tmp_path, WIDE, VisionSpec(width=64, kinds=(("v.blk.*", "Q6_K"),)))
    with pytest.raises(ParameterError, match="token_embd.*48"):
        pairs.build(tmp_path, TextSpec(kind="IQ4_XS"), TOWER)


def test_a_vocabulary_of_some_words():
    found = pairs.vocabulary(("the", "red"))
    assert found["tokenizer.ggml.tokens"][259:] == [
        "d",
        "e",
        "h",
        "r",
        "t",
        "▁",
        "▁r",
        "▁t",
        "▁re",
        "▁th",
        "▁red",
        "▁the",
    ]
    assert n_vocab(("the", "red")) == 271 == len(found["tokenizer.ggml.scores"])
    assert n_vocab() == len(pairs.vocabulary()["tokenizer.ggml.token_type"]) > 400


def test_a_projector_gain_goes_in_and_out_again(tmp_path):
    found = {
        gain: tensors(pairs.build(tmp_path, TextSpec(), VisionSpec(projector_gain=gain)).mmproj) for gain in (1.0, 16.0)
    }
    for name, factor in (("mm.0.weight", 16), ("mm.2.weight", 1 / 16), ("mm.0.bias", 1), ("v.blk.0.ffn_up.weight", 1)):
        np.testing.assert_allclose(found[16.0][name][1], factor * found[1.0][name][1], rtol=1e-6)
