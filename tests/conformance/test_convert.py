"""The converter: the same pair from every layout of names, errors by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llava_ref import gguf
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.convert import hf_config
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.convert.hf_weights import plain_name
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.loading import load
from llava_ref.ops.numpy_quants import dequantize
from llava_ref.tracing.distance import rel_rms

from .tiny_vocabulary import N_BASE, fast_tokenizer

reason = reference_hf.missing()
needs_transformers = pytest.mark.skipif(bool(reason), reason=str(reason))
pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a folder as transformers does: `<image>` and `<pad>` added, rows for padding after them."""
    folder = tmp_path_factory.mktemp("hf") / "tiny-llava"
    reference_hf.save(reference_hf.build(reference_hf.Shape(n_vocab=N_BASE + 9, image_token=N_BASE), 0), folder)
    (folder / "tokenizer.json").write_text(json.dumps(fast_tokenizer([("<image>", True), ("<pad>", True)])))
    return folder


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """Copy the checkpoint, so that a test may spoil it."""
    return Path(shutil.copytree(checkpoint, tmp_path / "tiny-llava"))


def rename(folder: Path, change: Any) -> None:
    tensors = {change(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({name: tensor for name, tensor in tensors.items() if name}, folder / "model.safetensors")


def in_memory_5(name: str) -> str:
    plain = plain_name(name)
    return plain if plain.startswith("lm_head") else f"model.{plain}"


def in_4(name: str) -> str:
    plain = plain_name(name)
    if plain.startswith("lm_head"):
        return f"language_model.{plain}"
    for prefix, to in (("language_model.", "language_model.model."), ("vision_tower.", "vision_tower.vision_model.")):
        if plain.startswith(prefix):
            return to + plain.removeprefix(prefix)
    return plain


@needs_transformers
@pytest.mark.parametrize("layout", [in_memory_5, in_4])
def test_every_layout_gives_the_same_pair(checkpoint: Path, folder: Path, layout: Any, tmp_path: Path) -> None:
    names = set(load_file(folder / "model.safetensors"))
    rename(folder, layout)
    assert set(load_file(folder / "model.safetensors")) != names
    want = convert.convert_folder(checkpoint, str(tmp_path / "want"))
    found = convert.convert_folder(folder, str(tmp_path / "found"))
    assert found.text.read_bytes() == want.text.read_bytes()
    assert found.mmproj.read_bytes() == want.mmproj.read_bytes()


@needs_transformers
def test_a_checkpoint_in_shards(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    want = convert.convert_folder(checkpoint, str(tmp_path / "want"))
    found = convert.convert_folder(folder, str(tmp_path / "found"))
    assert found.text.read_bytes() == want.text.read_bytes()
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"model-00002-of-00002\.safetensors: missing file"):
        convert.convert_folder(folder, str(tmp_path / "found"))


@needs_transformers
def test_a_missing_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    rename(folder, lambda name: "" if name.endswith("layers.1.mlp.fc1.bias") else name)
    with pytest.raises(ConversionError, match=r"vision_tower\.encoder\.layers\.1\.mlp\.fc1\.bias: missing tensor"):
        convert.convert_folder(folder, str(tmp_path / "out"))


@needs_transformers
def test_an_unexpected_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    rename(folder, lambda name: name.replace("layers.0.self_attn.v_proj.weight", "layers.0.self_attn.w_proj.weight"))
    with pytest.raises(ConversionError, match=r"layers\.0\.self_attn\.v_proj\.weight: missing"):
        convert.convert_folder(folder, str(tmp_path / "out"))
    tensors = load_file(folder / "model.safetensors")
    fixed = {name.replace("w_proj", "v_proj"): tensor for name, tensor in tensors.items()}
    save_file(fixed | {"image_newline": np.zeros(60, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ConversionError, match="image_newline: unexpected tensor"):
        convert.convert_folder(folder, str(tmp_path / "out"))


@needs_transformers
def test_a_wrong_shape_is_named(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=r"gate_proj\.weight: has shape \[104, 60\], expected \[112, 60\]"):
        convert.convert_folder(folder, str(tmp_path / "out"))


@needs_transformers
def test_the_pair_has_only_what_is_used(checkpoint: Path, tmp_path: Path) -> None:
    pair = convert.convert_folder(checkpoint, str(tmp_path / "out"), "F16")
    text, mmproj = gguf.read(pair.text), gguf.read(pair.mmproj)
    assert mmproj.integer("clip.vision.block_count", 0, 99) == 4 and "v.blk.4.ln1.weight" not in mmproj.tensors
    assert list(mmproj.array("clip.vision.feature_layer", "int")) == [4]  # of five blocks: hidden state -2
    assert not [name for name in mmproj.tensors if name.startswith("v.post_ln")]
    types = {view.type for name, view in text.tensors.items() if len(view.shape) == 2}
    assert types == {"F16"} and text.tensors["output_norm.weight"].type == "F32"
    assert text.string("general.name") == "tiny-llava"
    assert text.array_length("tokenizer.ggml.tokens") == text.tensors["token_embd.weight"].shape[0] == N_BASE


@needs_transformers
def test_q_and_k_go_to_adjacent_pairs(checkpoint: Path, tmp_path: Path) -> None:
    pair = convert.convert_folder(checkpoint, str(tmp_path / "out"), "F32")
    before = load_file(checkpoint / "model.safetensors")["language_model.model.layers.1.self_attn.k_proj.weight"]
    after = dequantize(gguf.read(pair.text).tensors["blk.1.attn_k.weight"])
    head = slice(10, 20)  # the second of three heads of ten channels
    assert np.array_equal(after[head][0::2], before[head][:5]) and np.array_equal(after[head][1::2], before[head][5:])


@needs_transformers
def test_the_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main([str(checkpoint), str(tmp_path / "out"), "--type", "bf16"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"out-{part}.gguf") for part in ("text", "mmproj")]
    assert gguf.read(tmp_path / "out-text.gguf").tensors["blk.0.ffn_up.weight"].type == "BF16"
    assert convert.main([str(checkpoint), str(tmp_path / "out"), "--type", "q8_0"]) == 1
    assert "has rows of 60, expected a multiple of 32" in capsys.readouterr().err
    assert convert.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "config.json: missing file" in capsys.readouterr().err


@needs_transformers
@pytest.mark.skipif(bool(oracle.missing()), reason=str(oracle.missing()))
def test_llama_cpp_reads_the_pair(checkpoint: Path, tmp_path: Path, within: Any) -> None:
    pair = convert.convert_folder(checkpoint, str(tmp_path / "out"), "F32")
    ours = load(pair.text, pair.mmproj, backend="numpy", profile="llama.cpp")
    llama = oracle.Oracle(pair.text, pair.mmproj)
    (image,) = llama.encode([np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)])
    (want,) = llama.logits([[[1, 5, 260], image.rows, [261, 262, 263]]])
    within("llama.cpp, image rows, a converted checkpoint", rel_rms(ours.encode(image.pixels[None]), image.rows), 2e-3)
    found = ours.forward([[1, 5, 260], image.rows, [261, 262, 263]])
    within("llama.cpp, logits, a converted checkpoint", rel_rms(found, want.logits), 5e-6)


def test_a_config_that_leaves_out_the_defaults() -> None:
    """The config.json of llava-hf/llava-1.5-7b-hf."""
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}
    vision = {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096}
    vision |= {"num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768}
    config = {"text_config": text, "vision_config": vision, "vision_feature_layer": -2}
    shape = hf_config.read_text("here", config)
    assert (shape.width, shape.n_layer, shape.n_head_kv, shape.mlp_width) == (4096, 32, 32, 11008)
    tower = hf_config.read_vision("here", config, 4096)
    assert (tower.n_used, tower.n_rows, tower.metadata["clip.vision.feature_layer"]) == (23, 577, [23])


@pytest.mark.parametrize(
    "change, field",
    [
        ({"text_config": {"model_type": "qwen2"}}, "text_config.model_type"),
        ({"text_config": {"hidden_act": "gelu"}}, "text_config.hidden_act"),
        ({"text_config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}}, "text_config.rope_parameters"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "vision_config.model_type"),
        ({"vision_config": {"hidden_act": "gelu_pytorch_tanh"}}, "vision_config.hidden_act"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ({"vision_feature_layer": 99}, "vision_feature_layer"),
    ],
)
def test_what_a_pair_cannot_say_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConversionError) as caught:
        hf_config.read_vision("here", change, hf_config.read_text("here", change).width)
    assert caught.value.field == field
