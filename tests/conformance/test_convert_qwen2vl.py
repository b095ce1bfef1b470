"""The converter on Qwen2-VL and Qwen2.5-VL: the way there and back, from a folder as transformers saves it."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_ref import gguf
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.engines.hf import qwen2vl_prompt
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.reference import Case

from .converted import BOUNDS, assert_same_files, assert_same_ids, converted, distance_said, saved
from .qwen2vl_cases import ANY_SIZE, FAMILY, WHOLE_BLOCKS

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
STRINGS = ["what is the color", " 123 a\n\nb  é漢<|im_end|>", "<|im_start|>user\nI'Ll see<|vision_start|>x"]
SENT = {
    "Qwen2.5-VL": ANY_SIZE["2.5, wide, tiny and tall"],
    "Qwen2-VL": ANY_SIZE["2, a tall one first"],
    "Qwen2-VL, tied": WHOLE_BLOCKS["2, tied, the base left out"],
}
MODELS = pytest.mark.parametrize("name", SENT)
# What a config says otherwise than a pair of `pairs.qwen2vl`: the real width, a size that nobody asks for, the base.
OTHERWISE = {"clip.vision.feed_forward_length", "clip.vision.image_size", "tokenizer.chat_template"}


def save(case: Case, folder: Path) -> Path:
    return saved(case, folder, qwen2vl_prompt.qwen_tokenizer, qwen2vl_prompt, ("<|endoftext|>", "<|im_end|>"))


@MODELS
def test_there_and_back(tmp_path: Path, name: str) -> None:
    case = FAMILY.write(tmp_path, SENT[name])
    made = converted(save(case, tmp_path / "hf"))
    assert_same_files(made, case, OTHERWISE)
    assert_same_ids(made, STRINGS, qwen2vl_prompt.qwen_tokenizer(gguf.read(case.text)))


@MODELS
@pytest.mark.parametrize("profile", BOUNDS)
def test_a_converted_model_says_the_same(tmp_path: Path, within: Any, name: str, profile: str) -> None:
    case = FAMILY.write(tmp_path, SENT[name])
    said = distance_said(converted(save(case, tmp_path / "hf")), case, profile)
    within(f"Qwen2-VL, converted, {profile}", said, BOUNDS[profile])


REFUSED: dict[str, dict[str, Any]] = {
    "fullatt_block_indexes": {"vision_config": {"fullatt_block_indexes": [0, 2]}},
    "vision_config.window_size": {"vision_config": {"window_size": 56}},
    "vision_config.hidden_act": {"vision_config": {"hidden_act": "gelu"}},
    "use_sliding_window": {"text_config": {"use_sliding_window": True}},
    "rope_parameters": {"text_config": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}},
    "mlp.gate_proj.weight": {"text_config": {"intermediate_size": 96}},
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_a_pair_cannot_say_is_refused(tmp_path: Path, field: str) -> None:
    folder = save(FAMILY.write(tmp_path, SENT["Qwen2.5-VL"]), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    for part, change in REFUSED[field].items():
        config[part] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=field):
        convert.convert_folder(folder, str(tmp_path / "made"))
