"""The converter on Pixtral and Mistral Small 3.1: the way there and back, from a folder as transformers saves it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_ref import gguf
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.engines.hf import bpe_tokenizer, pixtral_prompt
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.pairs import TextSpec
from llava_ref.conformance.pairs.pixtral import build_pixtral

from .converted import BOUNDS, UNSAID, assert_same_files, assert_same_ids, converted, distance_said, saved
from .family_stages import Asked, Family
from .pixtral_cases import SMALL, TALL, TOWER, WIDE, WORDS

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
STRINGS = ["what is the color", " 123 a\n\nb  é漢</s>", "[INST]I'Ll seeRed\n/\n[IMG_BREAK]x"]
# A config has no word for the width between the projector's matrices, which is the decoder's.
WIDTH = TextSpec().width
SENT = {
    "Pixtral": Asked(f"<image>{WORDS}<image>", (TALL, WIDE), vision=replace(TOWER, middle=WIDTH, biases=True)),
    "Mistral Small 3.1, tied": Asked(
        f"{WORDS}<image>", (WIDE,), TextSpec(tied=True, n_head_kv=1), replace(SMALL, middle=WIDTH, biases=True)
    ),
}
RULES = {"Pixtral": ("pixtral", "llama-bpe"), "Mistral Small 3.1, tied": ("tekken", "tekken")}  # the second converted
MODELS = pytest.mark.parametrize("name", SENT)


def written(folder: Path, name: str) -> Case:
    pre, _ = RULES[name]
    family = Family("Pixtral", lambda *given: build_pixtral(*given, pre=pre), SENT, TextSpec(), TOWER)
    return family.write(folder, SENT[name])


def save(case: Case, folder: Path) -> Path:
    return saved(case, folder, bpe_tokenizer.bpe_tokenizer, pixtral_prompt, ("<s>", "</s>"))


@MODELS
def test_there_and_back(tmp_path: Path, name: str) -> None:
    case = written(tmp_path, name)
    made = converted(save(case, tmp_path / "hf"))
    assert_same_files(made, case, {*UNSAID, "tokenizer.ggml.pre"})
    assert gguf.read(made.text)["tokenizer.ggml.pre"] == RULES[name][1]
    assert_same_ids(made, STRINGS, bpe_tokenizer.bpe_tokenizer(gguf.read(case.text)))


@MODELS
@pytest.mark.parametrize("profile", BOUNDS)
def test_a_converted_model_says_the_same(tmp_path: Path, within: Any, name: str, profile: str) -> None:
    case = written(tmp_path, name)
    said = distance_said(converted(save(case, tmp_path / "hf")), case, profile)
    within(f"Pixtral, converted, {profile}", said, BOUNDS[profile])


REFUSED: dict[str, dict[str, Any]] = {
    "vision_feature_layer": {"vision_feature_layer": -2},
    "projector_hidden_act": {"projector_hidden_act": "silu"},
    "vision_config.hidden_act": {"vision_config": {"hidden_act": "quick_gelu"}},
    "vision_config.rope_parameters": {"vision_config": {"rope_parameters": {"rope_theta": 1e6}}},
    "text_config.rms_norm_eps": {"text_config": {"rms_norm_eps": 1e-6}},
    "text_config.model_type": {"text_config": {"model_type": "ministral3"}},
    "size.longest_edge": {"vision_config": {"image_size": 280}},
    "multi_modal_projector.linear_1.bias": {"multimodal_projector_bias": False},
    "feed_forward.gate_proj.weight": {"vision_config": {"intermediate_size": 96}},
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_a_pair_cannot_say_is_refused(tmp_path: Path, field: str) -> None:
    folder = save(written(tmp_path, "Mistral Small 3.1, tied"), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    for part, change in REFUSED[field].items():
        config[part] = config[part] | change if isinstance(change, dict) else change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=field.replace(".", r"\.")):
        convert.convert_folder(folder, str(tmp_path / "made"))


def test_a_decoder_that_says_mistral_is_llama_s(tmp_path: Path) -> None:
    """Without a sliding window, as the released folders have it."""
    folder = save(written(tmp_path, "Pixtral"), tmp_path / "hf")
    llama = convert.convert_folder(folder, str(tmp_path / "llama"), "F32")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"model_type": "mistral", "sliding_window": None}
    (folder / "config.json").write_text(json.dumps(config))
    mistral = convert.convert_folder(folder, str(tmp_path / "mistral"), "F32")
    assert mistral.text.read_bytes() == llama.text.read_bytes()
    assert mistral.mmproj.read_bytes() == llama.mmproj.read_bytes()


def test_a_tower_that_gives_another_than_its_last_state_is_refused(tmp_path: Path) -> None:
    """A config that says nothing has LLaVA's defaults: the state before the last, less its first row."""
    folder = save(written(tmp_path, "Pixtral"), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    for key in ("vision_feature_layer", "vision_feature_select_strategy"):
        (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != key}))
        with pytest.raises(ConversionError, match=key):
            convert.convert_folder(folder, str(tmp_path / "made"))


def test_a_vocabulary_without_the_break_is_refused(tmp_path: Path) -> None:
    folder = save(written(tmp_path, "Pixtral"), tmp_path / "hf")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("[IMG_BREAK]", "[IMG_BROKEN]"))
    with pytest.raises(ConversionError, match=r"has no token \[IMG_BREAK\]"):
        convert.convert_folder(folder, str(tmp_path / "made"))
