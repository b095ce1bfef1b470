"""Every setting of a file is read with its type and range, and refused by name otherwise."""

from dataclasses import replace
from pathlib import Path

import pytest

from llava_ref import gguf, load
from llava_ref.conformance.pairs.pairs import (
    Random,
    TextSpec,
    VisionSpec,
    text_metadata,
    text_tensors,
    vision_metadata,
    vision_tensors,
)
from llava_ref.conformance.pairs.writing import write
from llava_ref.errors import GGUFError
from llava_ref.models import text_family, tower_family
from llava_ref.models.clip import Clip
from llava_ref.models.config import TextConfig, VisionConfig, read_text, read_vision
from llava_ref.models.llama import Llama, plan
from llava_ref.profiles import PROFILES

TEXT, VISION = text_metadata(TextSpec()), vision_metadata(VisionSpec(), 48)


def opened(path: Path, metadata: dict) -> gguf.GGUFFile:
    write(path / "file.gguf", {key: value for key, value in metadata.items() if value is not None}, {})
    return gguf.read(path / "file.gguf")


def decoder(file: gguf.GGUFFile) -> TextConfig:
    """Read the settings of a decoder that must be a llama."""
    assert text_family(file) is Llama
    return read_text(file, "llama")


def tower(file: gguf.GGUFFile) -> VisionConfig:
    """Read the settings of a tower that must be CLIP's."""
    assert tower_family(file) is Clip
    return read_vision(file)


REQUIRED = {
    decoder: ["llama.block_count", "llama.context_length", "llama.embedding_length", "llama.feed_forward_length",
                "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.tokens"],
    tower: [f"clip.vision.{key}" for key in (
        "image_size", "patch_size", "embedding_length", "feed_forward_length", "block_count", "attention.head_count",
        "attention.layer_norm_epsilon", "image_mean", "image_std")],
}  # fmt: skip
METADATA = {decoder: TEXT, tower: VISION}
BAD = {  # one value out of range, or at odds with the others, or of the wrong type
    decoder: {
        "general.architecture": "phi3", "llama.block_count": 0, "llama.context_length": 1 << 25,
        "llama.embedding_length": "wide", "llama.attention.head_count": 0, "llama.attention.head_count_kv": 3,
        "llama.attention.layer_norm_rms_epsilon": float("nan"), "llama.feed_forward_length": 1.5,
        "llama.attention.key_length": 0, "llama.attention.value_length": 5, "llama.rope.dimension_count": 6,
        "llama.rope.freq_base": 0.0, "llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": float("inf"),
        "llama.expert_count": 8, "llama.attention.scale": -1.0, "tokenizer.ggml.tokens": "many",
        "llama.attention.causal": False, "llama.attention.clamp_kqv": 8.0, "llama.logit_scale": 0.5,
        "llama.final_logit_softcapping": 30.0, "llama.use_parallel_residual": True, "llama.ssm.conv_kernel": 4,
        "llama.tensor_data_layout": "other", "llama.rope.dimension_sections": [1, 1, 0, 0],
        "llama.rope.scaling.yarn_log_multiplier": 0.1, "llama.rope.scaling.yarn_ext_factor": 0.0,
    },
    tower: {
        "clip.has_vision_encoder": False, "clip.projector_type": "resampler", "clip.vision.image_size": 0,
        "clip.vision.patch_size": 13, "clip.vision.attention.head_count": 7, "clip.vision.block_count": 4096,
        "clip.vision.image_mean": [0.5, 0.5], "clip.vision.image_std": [0.5, 0.0, 0.5],
        "clip.vision.attention.layer_norm_epsilon": -1.0,
        "clip.vision.image_grid_pinpoints": [336, 672], "clip.use_gelu": 1,
        "clip.vision.feature_layer": [2, 3], "clip.vision.attention.head_dim": 8, "clip.vision.window_size": 2,
        "clip.vision.attention.head_count_kv": 2, "clip.vision.image_aspect_ratio": "anyres",
        "clip.has_audio_encoder": True, "clip.vision.spatial_merge_size": 2, "clip.vision.sam.block_count": 2,
    },
}  # fmt: skip
CASES = [(read, key, None) for read, keys in REQUIRED.items() for key in keys]
CASES += [(read, key, value) for read, bad in BAD.items() for key, value in bad.items()]


@pytest.mark.parametrize("read, key, value", CASES, ids=lambda part: getattr(part, "__name__", str(part)))
def test_a_bad_setting_is_refused_by_name(tmp_path, read, key, value):
    file = opened(tmp_path, METADATA[read] | {key: value})
    with pytest.raises(GGUFError) as caught:
        read(file)
    assert caught.value.field == key
    assert str(caught.value).startswith(str(tmp_path / "file.gguf"))


def test_good_settings_are_read(tmp_path):
    text = decoder(opened(tmp_path, TEXT))
    assert (text.width, text.n_layer, text.n_head, text.n_head_kv, text.head_size) == (48, 3, 4, 2, 12)
    assert text.attention_scale == pytest.approx(12**-0.5)
    vision = tower(opened(tmp_path, VISION))
    assert (vision.image_size, vision.patch_size, vision.grid, vision.n_patches) == (56, 14, 4, 16)
    assert (vision.activation, vision.feature_layer) == ("gelu_quick", None)


def test_keys_that_ask_for_nothing_are_accepted(tmp_path):
    """What llama.cpp's converter writes for every model of a family, and the value that asks for nothing more."""
    text = {"llama.attention.causal": True, "llama.expert_count": 0, "llama.logit_scale": 1.0, "llama.swin_norm": False,
            "llama.tensor_data_layout": "Meta AI original pth", "llama.rope.dimension_sections": [0, 0],
            "llama.rope.scaling.yarn_ext_factor": 1.0, "llama.ssm.state_size": 0, "llama.vocab_size": 100}  # fmt: skip
    assert decoder(opened(tmp_path, TEXT | text)) == decoder(opened(tmp_path, TEXT))
    vision = {"clip.has_audio_encoder": False, "clip.vision.image_aspect_ratio": "pad", "clip.vision.window_size": 0,
              "clip.vision.mm_patch_merge_type": "flat", "clip.vision.attention.head_dim": 10}  # fmt: skip
    assert tower(opened(tmp_path, VISION | vision)) == tower(opened(tmp_path, VISION))


@pytest.mark.parametrize("read, key, value, n", [
    (decoder, "llama.attention.head_count", 4, 3), (decoder, "llama.attention.head_count_kv", 2, 3),
    (decoder, "llama.feed_forward_length", 80, 3), (decoder, "llama.attention.layer_norm_rms_epsilon", 0.5, 3),
    (decoder, "llama.attention.sliding_window", 8, 3), (decoder, "llama.rope.freq_base", 500.0, 3),
    (decoder, "llama.attention.key_length", 16, 3), (decoder, "llama.attention.scale", 0.5, 3),
    (tower, "clip.vision.attention.head_count", 2, 4), (tower, "clip.vision.feed_forward_length", 80, 4),
    (tower, "clip.vision.attention.layer_norm_epsilon", 0.5, 4),
])  # fmt: skip
def test_one_value_a_block(tmp_path, read, key, value, n):
    """Equal values are the value; others, and one too few, are refused by name."""
    also = {"llama.attention.value_length": 16} if key == "llama.attention.key_length" else {}
    base = METADATA[read] | also
    assert read(opened(tmp_path, base | {key: [value] * n})) == read(opened(tmp_path, base | {key: value}))
    for values, words in (([value] * (n - 1), f"{n - 1} values, expected one for each of {n} blocks"),
                          ([value] * (n - 1) + [value * 2], "for one block and .* for another")):  # fmt: skip
        with pytest.raises(GGUFError, match=words) as caught:
            read(opened(tmp_path, base | {key: values}))
        assert caught.value.field == key


S = "llama.rope.scaling."
YARN = TEXT | {S + "type": "yarn", S + "factor": 4.0, S + "original_context_length": 64, "llama.rope.freq_base": 500.0}


@pytest.mark.parametrize("change, field", [
    ({S + "original_context_length": 2}, S + "original_context_length"),
    ({S + "yarn_beta_fast": 1.0, S + "yarn_beta_slow": 32.0}, S + "original_context_length"),
    ({"llama.rope.freq_base": 1.0}, "llama.rope.freq_base"),
])  # fmt: skip
def test_a_ramp_that_ends_before_it_begins_is_refused(tmp_path, change, field):
    assert decoder(opened(tmp_path, YARN)).rope.scaling == "yarn"
    with pytest.raises(GGUFError) as caught:
        decoder(opened(tmp_path, YARN | change))
    assert caught.value.field == field


def test_how_positions_are_scaled(tmp_path):
    def rope(**changes):
        return decoder(
            opened(tmp_path, TEXT | {f"llama.rope.{k.replace('__', '.')}": v for k, v in changes.items()})
        ).rope

    assert (rope(scale_linear=4.0).scaling, rope(scale_linear=4.0).factor) == ("linear", 4.0)
    assert rope(scale_linear=4.0, scaling__factor=8.0).factor == 8.0
    assert rope(scale_linear=4.0, scaling__factor=0.0).scaling == "none"  # the newer key counts
    assert rope(scaling__type="none", scaling__factor=8.0).factor == 1.0
    assert rope(scaling__type="yarn").scaling == "none"
    assert rope(scaling__yarn_beta_fast=0.0).beta_fast == 32.0  # as transformers reads it
    assert rope(scaling__attn_factor=0.5).attn_factor == 0.5


def test_quirks_decide_what_is_obeyed(tmp_path):
    """Keys that llama.cpp does not read for this architecture."""
    given = {"llama.attention.scale": 0.9, "llama.attention.sliding_window": 8, S + "yarn_beta_fast": 1.5,
             S + "yarn_beta_slow": 1.25, S + "yarn_attn_factor": 0.5}  # fmt: skip
    plain, asked = decoder(opened(tmp_path, YARN)), decoder(opened(tmp_path, YARN | given))
    assert plan(asked, PROFILES["llava"]) == plan(asked, PROFILES["hf"]) == asked
    assert (asked.attention_scale, asked.window, asked.rope.beta_fast) == pytest.approx((0.9, 8, 1.5))
    assert plan(asked, PROFILES["llama.cpp"]) == plain
    only = replace(PROFILES["llava"], attention_scale="ignore")
    assert plan(asked, only) == replace(asked, attention_scale=plain.attention_scale)


@pytest.mark.parametrize("key", ["clip.projector_type", "clip.vision.projector_type"])
def test_where_the_projector_is_named(tmp_path, key):
    unnamed = {k: v for k, v in VISION.items() if k != "clip.projector_type"}
    assert tower(opened(tmp_path, unnamed)).projector == "mlp"  # files of 2023
    with pytest.raises(GGUFError, match="'resampler' is not supported"):
        tower(opened(tmp_path, unnamed | {key: "resampler"}))


@pytest.mark.parametrize("change, field", [
    (lambda t: t.pop("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight"),
    (lambda t: t.update({"blk.1.attn_q.weight": t["blk.1.attn_k.weight"]}), "blk.1.attn_q.weight"),
    (lambda t: t.update({"blk.7.attn_q.weight": t["blk.1.attn_k.weight"]}), "blk.7.attn_q.weight"),
    (lambda t: t.update({"blk.0.attn_norm.bias": t["blk.0.attn_norm.weight"]}), "blk.0.attn_norm.bias"),
])  # fmt: skip
def test_tensors_at_odds_with_the_settings_are_refused(tmp_path, change, field):
    tensors = text_tensors(TextSpec(), Random(0, 1.0))
    change(tensors)
    write(tmp_path / "text.gguf", TEXT, tensors)
    with pytest.raises(GGUFError) as caught:
        load(tmp_path / "text.gguf")
    assert caught.value.field == field


def test_a_tower_at_odds_with_its_settings_is_refused(tmp_path):
    tensors = vision_tensors(VisionSpec(), 48, Random(0, 1.0))
    for name, changed in {"image_size": 70, "embedding_length": 44, "feed_forward_length": 40}.items():
        write(tmp_path / "mmproj.gguf", VISION | {f"clip.vision.{name}": changed}, tensors)
        with pytest.raises(GGUFError):
            load(None, tmp_path / "mmproj.gguf")
