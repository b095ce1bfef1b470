"""Which profile a pair of files means, and pairs that do not fit."""

from dataclasses import replace

import pytest

from llava_ref import gguf, load
from llava_ref.conformance.pairs.gemma3 import (
    Gemma3Spec,
    SiglipSpec,
    build_gemma3,
    gemma3_metadata,
    gemma3_tensors,
)
from llava_ref.conformance.pairs.mllama import MllamaTextSpec, MllamaVisionSpec, build_mllama
from llava_ref.conformance.pairs.pairs import Random, TextSpec, VisionSpec, build
from llava_ref.conformance.pairs.writing import write
from llava_ref.errors import PairError, ParameterError
from llava_ref.loading import original
from llava_ref.profiles import ORIGINALS, PROFILES, describe, resolve


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    llama = build(tmp_path_factory.mktemp("llama"), TextSpec(), VisionSpec())
    gemma = build_gemma3(tmp_path_factory.mktemp("gemma3"), Gemma3Spec(), SiglipSpec())
    mllama = build_mllama(tmp_path_factory.mktemp("mllama"), MllamaTextSpec(), MllamaVisionSpec())
    return {"llama": llama, "gemma3": gemma, "mllama": mllama}


OWN = [("llama", "llava"), ("gemma3", "hf"), ("mllama", "meta")]


@pytest.mark.parametrize("family, own", OWN)
def test_profile_llava_is_what_the_family_s_own_code_does(pairs, family, own):
    text, mmproj = gguf.read(pairs[family].text), gguf.read(pairs[family].mmproj)
    for halves in ((text, mmproj), (text, None), (None, mmproj)):
        assert original(*halves) == own
    for profile in PROFILES:
        assert profile == "llava" or resolve(profile, {}, own) == PROFILES[profile]


@pytest.mark.parametrize("family, own", OWN)
def test_a_model_has_the_quirks_of_what_was_meant(pairs, family, own):
    pair = pairs[family]
    model = load(pair.text, pair.mmproj, backend="numpy", quirks={"exif": "apply"})
    assert model.quirks == replace(ORIGINALS[own], exif="apply")
    assert model.settings["profile"] == "llava" and model.settings["quirks"] == describe(model.quirks)
    assert load(pair.text, pair.mmproj, backend="numpy", profile="llama.cpp").quirks == PROFILES["llama.cpp"]


def test_a_tower_of_another_width_is_refused(pairs, tmp_path):
    wide = build_gemma3(tmp_path, Gemma3Spec(width=64), SiglipSpec())
    with pytest.raises(PairError) as caught:
        load(wide.text, pairs["gemma3"].mmproj, backend="numpy")
    problem = "has 60 columns, but the text model's embedding_length is 64"
    assert str(caught.value) == f"{pairs['gemma3'].mmproj}: mm.input_projection.weight: {problem}"
    with pytest.raises(PairError, match="mm.2.weight: has 48 rows, but the text model's embedding_length is 60"):
        load(pairs["gemma3"].text, pairs["llama"].mmproj, backend="numpy")


@pytest.mark.parametrize("marker", ["<start_of_image>", "<end_of_image>"])
def test_a_text_model_without_a_marker_is_refused(pairs, tmp_path, marker):
    metadata = dict(gemma3_metadata(Gemma3Spec()))
    tokens = metadata["tokenizer.ggml.tokens"]
    metadata["tokenizer.ggml.tokens"] = ["<other>" if token == marker else token for token in tokens]
    write(tmp_path / "text.gguf", metadata, gemma3_tensors(Gemma3Spec(), Random(0, 1.0)))
    with pytest.raises(PairError) as caught:
        load(tmp_path / "text.gguf", pairs["gemma3"].mmproj, backend="numpy")
    assert caught.value.field == "tokenizer.ggml.tokens" and f"no token {marker}," in str(caught.value)
    load(tmp_path / "text.gguf", backend="numpy")


@pytest.mark.parametrize(
    "setting, value", [("threads", 0), ("threads", True), ("weight_cache", -1), ("weight_cache", 1.5), ("n_context", 1),
                       ("n_context", 513)]
)  # fmt: skip
def test_a_setting_out_of_range_is_refused(pairs, setting, value):
    with pytest.raises(ParameterError, match=f"{setting}: {value!r}: "):
        load(pairs["llama"].text, backend="numpy", **{setting: value})


def test_neither_half_is_refused():
    with pytest.raises(ParameterError, match="neither a text model nor an mmproj file was given"):
        load(None)
