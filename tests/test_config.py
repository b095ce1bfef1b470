"""Every setting of a file is read with its type and range, and refused by name otherwise."""

from pathlib import Path

import pytest

from llava_ref import gguf
from llava_ref.config import read_text, read_vision
from llava_ref.conformance.pairs import (
    Random,
    TextSpec,
    VisionSpec,
    text_metadata,
    text_tensors,
    vision_metadata,
    vision_tensors,
)
from llava_ref.conformance.writing import write
from llava_ref.engine import Engine
from llava_ref.errors import GGUFError
from llava_ref.profiles import Quirks

TEXT, VISION = text_metadata(TextSpec()), vision_metadata(VisionSpec(), 48)


def opened(path: Path, metadata: dict) -> gguf.GGUFFile:
    write(path / "file.gguf", {key: value for key, value in metadata.items() if value is not None}, {})
    return gguf.read(path / "file.gguf")


REQUIRED = {
    read_text: ["llama.block_count", "llama.context_length", "llama.embedding_length", "llama.feed_forward_length",
                "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.tokens"],
    read_vision: [f"clip.vision.{key}" for key in (
        "image_size", "patch_size", "embedding_length", "feed_forward_length", "block_count", "attention.head_count",
        "attention.layer_norm_epsilon", "image_mean", "image_std")],
}  # fmt: skip
METADATA = {read_text: TEXT, read_vision: VISION}
BAD = {  # one value out of range, or at odds with the others, or of the wrong type
    read_text: {
        "general.architecture": "qwen2", "llama.block_count": 0, "llama.context_length": 1 << 25,
        "llama.embedding_length": "wide", "llama.attention.head_count": 0, "llama.attention.head_count_kv": 3,
        "llama.attention.layer_norm_rms_epsilon": float("nan"), "llama.feed_forward_length": 1.5,
        "llama.attention.key_length": 0, "llama.attention.value_length": 5, "llama.rope.dimension_count": 6,
        "llama.rope.freq_base": 0.0, "llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": float("inf"),
        "llama.expert_count": 8, "llama.attention.scale": -1.0, "tokenizer.ggml.tokens": "many",
    },
    read_vision: {
        "clip.has_vision_encoder": False, "clip.projector_type": "ldp", "clip.vision.image_size": 0,
        "clip.vision.patch_size": 13, "clip.vision.attention.head_count": 7, "clip.vision.block_count": 4096,
        "clip.vision.image_mean": [0.5, 0.5], "clip.vision.image_std": [0.5, 0.0, 0.5],
        "clip.vision.attention.layer_norm_epsilon": -1.0, "clip.vision.feature_layer": [5],
        "clip.vision.image_grid_pinpoints": [336, 672], "clip.use_gelu": 1,
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
    text = read_text(opened(tmp_path, TEXT))
    assert (text.width, text.n_layer, text.n_head, text.n_head_kv, text.head_size) == (48, 3, 4, 2, 12)
    assert text.attention_scale == pytest.approx(12**-0.5)
    vision = read_vision(opened(tmp_path, VISION))
    assert (vision.image_size, vision.patch_size, vision.grid, vision.n_patches) == (56, 14, 4, 16)
    assert (vision.activation, vision.feature_layer) == ("gelu_quick", None)


@pytest.mark.parametrize("key", ["clip.projector_type", "clip.vision.projector_type"])
def test_where_the_projector_is_named(tmp_path, key):
    unnamed = {k: v for k, v in VISION.items() if k != "clip.projector_type"}
    assert read_vision(opened(tmp_path, unnamed)).projector == "mlp"  # files of 2023
    with pytest.raises(GGUFError, match="'resampler' is not supported"):
        read_vision(opened(tmp_path, unnamed | {key: "resampler"}))


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
        Engine(gguf.read(tmp_path / "text.gguf"), None, quirks=Quirks())
    assert caught.value.field == field


def test_a_tower_at_odds_with_its_settings_is_refused(tmp_path):
    tensors = vision_tensors(VisionSpec(), 48, Random(0, 1.0))
    for name, changed in {"image_size": 70, "embedding_length": 44, "feed_forward_length": 40}.items():
        write(tmp_path / "mmproj.gguf", VISION | {f"clip.vision.{name}": changed}, tensors)
        with pytest.raises(GGUFError):
            Engine(None, gguf.read(tmp_path / "mmproj.gguf"), quirks=Quirks())
