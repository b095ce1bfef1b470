"""The converter on SmolVLM and Idefics3: the way there and back, from a folder as transformers saves it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_ref import gguf
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.engines.hf import bpe_tokenizer, idefics3_prompt
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.idefics3 import Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.pairs import Pair, TextSpec

from .converted import BOUNDS, assert_same_files, assert_same_ids, converted, distance_said, saved

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
VISION = Idefics3Spec(image_size=28, patch_size=7, longest=84)
STRINGS = ["what is the color", " 12 a\n\nb  é漢<end_of_utterance>", "<|im_start|>User:<row_2_col_3> x"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_idefics3(tmp_path_factory.mktemp("pair"), TextSpec(biases=True, n_head_kv=1), VISION)


def save(pair: Pair, folder: Path) -> Path:
    tokenizer_of, ends = bpe_tokenizer.bpe_tokenizer, ("<|endoftext|>", "<end_of_utterance>")
    return saved(pair, folder, tokenizer_of, idefics3_prompt, ends)


def test_there_and_back(pair: Pair, tmp_path: Path) -> None:
    made = converted(save(pair, tmp_path / "hf"))
    assert_same_files(made, pair)
    assert_same_ids(made, STRINGS, bpe_tokenizer.bpe_tokenizer(gguf.read(pair.text)))


@pytest.mark.parametrize("profile", BOUNDS)
def test_a_converted_model_says_the_same(pair: Pair, tmp_path: Path, within: Any, profile: str) -> None:
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 50, 3), np.uint8)).save(tmp_path / "p.png")
    case = Case(pair.text, pair.mmproj, (tmp_path / "p.png",), "is<image>red")
    said = distance_said(converted(save(pair, tmp_path / "hf")), case, profile)
    within(f"Idefics3, converted, {profile}", said, BOUNDS[profile])


@pytest.mark.parametrize(
    "file, change, names",
    [
        ("config.json", {"vision_config": {"hidden_act": "gelu"}}, "vision_config.hidden_act"),
        ("preprocessor_config.json", {"do_image_splitting": False}, "do_image_splitting"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 30}}, "max_image_size"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "ByteLevel"}}, "pre_tokenizer"),
        ("tokenizer_config.json", {"eos_token": "<none>"}, "eos_token"),
    ],
)
def test_what_cannot_be_converted_is_named(
    pair: Pair, tmp_path: Path, file: str, change: dict[str, Any], names: str
) -> None:
    folder = save(replace(pair), tmp_path / "hf")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change if path.is_file() else change))
    with pytest.raises(ConversionError, match=names):
        convert.convert_folder(folder, str(tmp_path / "made"))
