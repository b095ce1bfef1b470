"""The converter on InternVL: the way there and back, from a folder as transformers saves it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_ref import gguf
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.engines.hf import internvl_prompt
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.pairs import TextSpec

from .converted import BOUNDS, assert_same_files, assert_same_ids, converted, distance_said, saved
from .family_stages import Asked
from .internvl_cases import FAMILY, QWEN2, TALL, TOWER

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
STRINGS = ["what is the color", " 123 a\n\nb  é漢<|im_end|>", "<|im_start|>user\nI'Ll see<img>x</img>"]
VISION = replace(TOWER, middle=48)  # transformers' projector is as wide as its decoder
SENT = {
    "qwen2": Asked("is<image>red", (TALL,), QWEN2, VISION),
    "qwen2, tied, no biases": Asked("is<image>red", (TALL,), replace(QWEN2, tied=True), replace(VISION, biases=False)),
    "a large tower": Asked("is<image>red", (TALL,), QWEN2, replace(VISION, biases=False, large=True)),
    "llama": Asked("is<image>red", (TALL,), TextSpec(n_head_kv=1), VISION),
}
MODELS = pytest.mark.parametrize("name", SENT)


def save(case: Case, folder: Path) -> Path:
    return saved(case, folder, internvl_prompt.tokenizer_of, internvl_prompt, ("<|endoftext|>", "<|im_end|>"))


@MODELS
def test_there_and_back(tmp_path: Path, name: str) -> None:
    case = FAMILY.write(tmp_path, SENT[name])
    made = converted(save(case, tmp_path / "hf"))
    assert_same_files(made, case)
    assert_same_ids(made, STRINGS, internvl_prompt.tokenizer_of(gguf.read(case.text)))


@pytest.mark.parametrize("name", [name for name in SENT if name != "a large tower"])
@pytest.mark.parametrize("profile", BOUNDS)
def test_a_converted_model_says_the_same(tmp_path: Path, within: Any, name: str, profile: str) -> None:
    case = FAMILY.write(tmp_path, SENT[name])
    said = distance_said(converted(save(case, tmp_path / "hf")), case, profile)
    within(f"InternVL, converted, {profile}", said, BOUNDS[profile])


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "vision_config.norm_type": ("config.json", {"vision_config": {"norm_type": "rms_norm"}}),
    "vision_config.norm_type: 'layer_norm'": ("config.json", {"vision_config": {"use_qk_norm": True}}),
    "vision_config.use_mean_pooling": ("config.json", {"vision_config": {"use_mean_pooling": False}}),
    "vision_config.hidden_act": ("config.json", {"vision_config": {"hidden_act": "silu"}}),
    "vision_config.image_size": ("config.json", {"vision_config": {"image_size": [28, 56]}}),
    "vision_feature_layer": ("config.json", {"vision_feature_layer": -2}),
    "projector_hidden_act": ("config.json", {"projector_hidden_act": "relu"}),
    "rope_parameters": ("config.json", {"text_config": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}}),
    "text_config.model_type": ("config.json", {"text_config": {"model_type": "qwen3"}}),
    "size": ("preprocessor_config.json", {"size": {"height": 30, "width": 30}}),
    "multi_modal_projector.layer_norm.weight": ("config.json", {"downsample_ratio": 0.25}),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_a_pair_cannot_say_is_refused(tmp_path: Path, field: str) -> None:
    folder = save(FAMILY.write(tmp_path, SENT["qwen2"]), tmp_path / "hf")
    file, changes = REFUSED[field]
    read = json.loads((folder / file).read_text())
    for part, change in changes.items():
        read[part] = {**read[part], **change} if isinstance(read.get(part), dict) else change
    (folder / file).write_text(json.dumps(read))
    with pytest.raises(ConversionError, match=field):
        convert.convert_folder(folder, str(tmp_path / "made"))


def test_a_base_that_grows_beyond_the_context_is_the_file_s(tmp_path: Path) -> None:
    """InternVL3's folders have `dynamic`, which transformers applies to longer texts alone."""
    folder = save(FAMILY.write(tmp_path, SENT["qwen2"]), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(config))
    made = convert.convert_folder(folder, str(tmp_path / "made"))
    assert gguf.read(made.text)["qwen2.rope.freq_base"] == 1e4
