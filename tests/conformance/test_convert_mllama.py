"""The converter on Llama-3.2-Vision: the way there and back, from a folder as transformers saves it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_ref import gguf
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.engines.hf import bpe_tokenizer, mllama_prompt
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.mllama import FIRST, MllamaTextSpec, MllamaVisionSpec, build_mllama
from llava_ref.conformance.pairs.pairs import Pair

from .converted import BOUNDS, assert_same_files, assert_same_ids, converted, distance_said, saved

reason = reference_hf.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
STRINGS = ["what is the color", " 12 a\n\nb  é漢<|eot_id|>", "<|start_header_id|>user<|image|> x"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_mllama(tmp_path_factory.mktemp("pair"), MllamaTextSpec(n_head_kv=1), MllamaVisionSpec())


def save(pair: Pair, folder: Path) -> Path:
    return saved(pair, folder, bpe_tokenizer.bpe_tokenizer, mllama_prompt, (FIRST[0], FIRST[3]))


def test_there_and_back(pair: Pair, tmp_path: Path) -> None:
    """A gate is equal to the rounding of its tanh."""
    made = converted(save(pair, tmp_path / "hf"))
    assert_same_files(made, pair, rounded=(".gate", "_gate"))
    assert_same_ids(made, STRINGS, bpe_tokenizer.bpe_tokenizer(gguf.read(pair.text)), llama_cpp=False)


def test_a_converted_model_says_the_same(pair: Pair, tmp_path: Path, within: Any) -> None:
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 50, 3), np.uint8)).save(tmp_path / "p.png")
    case = Case(pair.text, pair.mmproj, (tmp_path / "p.png",), "is<image>red")
    said = distance_said(converted(save(pair, tmp_path / "hf")), case, "hf")
    within("Mllama, converted, hf", said, BOUNDS["hf"])


@pytest.mark.parametrize(
    "file, change, names",
    [
        ("config.json", {"vision_config": {"hidden_act": "silu"}}, "vision_config.hidden_act"),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ("preprocessor_config.json", {"max_image_tiles": 3}, "max_image_tiles"),
        ("preprocessor_config.json", {"size": {"height": 30, "width": 30}}, "size"),
        ("tokenizer_config.json", {"eos_token": "<none>"}, "eos_token"),
    ],
)
def test_what_cannot_be_converted_is_named(
    pair: Pair, tmp_path: Path, file: str, change: dict[str, Any], names: str
) -> None:
    folder = save(pair, tmp_path / "hf")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change if path.is_file() else change))
    with pytest.raises(ConversionError, match=names):
        convert.convert_folder(folder, str(tmp_path / "made"))
