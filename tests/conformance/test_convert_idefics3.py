"""The converter on SmolVLM and Idefics3: the way there and back, from a folder as transformers saves it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref import gguf
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.engines.hf import bpe_tokenizer, from_gguf, idefics3_prompt
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.idefics3 import Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.pairs import Pair, TextSpec
from llava_ref.tracing.distance import rel_rms

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
VISION = Idefics3Spec(image_size=28, patch_size=7, longest=84)
STRINGS = ["what is the color", " 12 a\n\nb  é漢<end_of_utterance>", "<|im_start|>User:<row_2_col_3> x"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_idefics3(tmp_path_factory.mktemp("pair"), TextSpec(biases=True, n_head_kv=1), VISION)


def save(pair: Pair, folder: Path) -> Path:
    """Write a folder as transformers does: model, tokenizer and image processor."""
    model = from_gguf.load(pair.text, pair.mmproj)
    assert model.vision is not None
    model.module.save_pretrained(folder)
    tokenizer: Any = bpe_tokenizer.bpe_tokenizer(model.text_file)
    tokenizer.bos_token, tokenizer.eos_token = "<|endoftext|>", "<end_of_utterance>"
    tokenizer.save_pretrained(folder)
    idefics3_prompt.image_processor(model.vision).save_pretrained(folder)
    return folder


def test_there_and_back(pair: Pair, tmp_path: Path) -> None:
    """Every tensor is equal bit for bit, every key but the name and the template."""
    made = convert.convert_folder(save(pair, tmp_path / "hf"), str(tmp_path / "made"), "F32")
    for found, want in ((made.text, pair.text), (made.mmproj, pair.mmproj)):
        ours, theirs = gguf.read(found), gguf.read(want)
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, view in theirs.tensors.items():
            assert (ours.tensors[name].type, ours.tensors[name].shape) == (view.type, view.shape), name
            assert bytes(ours.tensors[name].data) == bytes(view.data), name
        assert not [key for key in theirs if key not in ours and key != "tokenizer.chat_template"]
        assert not [key for key in theirs if key in ours and ours[key] != theirs[key]]
    llama = oracle.Oracle(made.text)
    want_ids = bpe_tokenizer.bpe_tokenizer(gguf.read(pair.text))
    model = llava_ref.load(made.text, made.mmproj, backend="numpy")
    for string, ids in zip(STRINGS, llama.tokenize(STRINGS, bos=False), strict=True):
        assert ids == list(want_ids(string)["input_ids"]) == model.tokenizer.encode(string)


@pytest.mark.parametrize("profile", ["hf", "llama.cpp"])
def test_a_converted_model_says_the_same(pair: Pair, tmp_path: Path, within: Any, profile: str) -> None:
    made = convert.convert_folder(save(pair, tmp_path / "hf"), str(tmp_path / "made"), "F32")
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 50, 3), np.uint8)).save(tmp_path / "p.png")
    case = Case(pair.text, pair.mmproj, (tmp_path / "p.png",), "is<image>red")
    engine: Any = Transformers() if profile == "hf" else LlamaCpp()
    run = engine.run(case)
    model = llava_ref.load(made.text, made.mmproj, backend="numpy", profile=profile)
    logits = model.request_logits(model.raw_request(case.prompt, case.images))
    bound = 2e-5 if profile == "hf" else 5e-3
    within(f"Idefics3, converted, {profile}", rel_rms(logits, run.stages["result_output"]), bound)


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
