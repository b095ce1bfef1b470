"""The converter on Llama-3.2-Vision: the way there and back, from a folder as transformers saves it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref import gguf
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.engines.hf import bpe_tokenizer, from_gguf, mllama_prompt
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.mllama import FIRST, MllamaTextSpec, MllamaVisionSpec, build_mllama
from llava_ref.conformance.pairs.pairs import Pair
from llava_ref.tracing.distance import rel_rms

reason = reference_hf.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
GATES = (".gate", "_gate")
STRINGS = ["what is the color", " 12 a\n\nb  é漢<|eot_id|>", "<|start_header_id|>user<|image|> x"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_mllama(tmp_path_factory.mktemp("pair"), MllamaTextSpec(n_head_kv=1), MllamaVisionSpec())


def save(pair: Pair, folder: Path) -> Path:
    """Write a folder as transformers does: model, tokenizer and image processor."""
    model = from_gguf.load(pair.text, pair.mmproj)
    assert model.vision is not None
    model.module.save_pretrained(folder)
    tokenizer: Any = bpe_tokenizer.bpe_tokenizer(model.text_file)
    tokenizer.bos_token, tokenizer.eos_token = FIRST[0], FIRST[3]
    tokenizer.save_pretrained(folder)
    mllama_prompt.image_processor(model.vision).save_pretrained(folder)
    return folder


def test_there_and_back(pair: Pair, tmp_path: Path) -> None:
    """Every tensor is equal bit for bit, a gate to the rounding of tanh; every key but the name and the template."""
    made = convert.convert_folder(save(pair, tmp_path / "hf"), str(tmp_path / "made"), "F32")
    for found, want in ((made.text, pair.text), (made.mmproj, pair.mmproj)):
        ours, theirs = gguf.read(found), gguf.read(want)
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, view in theirs.tensors.items():
            a, b = (np.frombuffer(file.tensors[name].data, np.float32) for file in (ours, theirs))
            assert ours.tensors[name].shape == view.shape and np.abs(a - b).max() <= 2e-7 * name.endswith(GATES), name
        assert not [key for key in theirs if key not in ours and key != "tokenizer.chat_template"]
        assert not [key for key in theirs if key in ours and ours[key] != theirs[key]]
    want_ids = bpe_tokenizer.bpe_tokenizer(gguf.read(pair.text))
    model = llava_ref.load(made.text, made.mmproj, backend="numpy")
    for string in STRINGS:
        assert list(want_ids(string)["input_ids"])[1:] == model.tokenizer.encode(string)


def test_a_converted_model_says_the_same(pair: Pair, tmp_path: Path, within: Any) -> None:
    made = convert.convert_folder(save(pair, tmp_path / "hf"), str(tmp_path / "made"), "F32")
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 50, 3), np.uint8)).save(tmp_path / "p.png")
    case = Case(pair.text, pair.mmproj, (tmp_path / "p.png",), "is<image>red")
    run = Transformers().run(case)
    model = llava_ref.load(made.text, made.mmproj, backend="numpy", profile="hf")
    logits = model.request_logits(model.raw_request(case.prompt, case.images))
    within("Mllama, converted, hf", rel_rms(logits, run.stages["result_output"]), 2e-5)


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
