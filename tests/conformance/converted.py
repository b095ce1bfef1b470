"""What tests of the converter share: a folder as transformers saves it, and what its pair must have in common with the
pair that the folder was made of."""

from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import llava_ref
from llava_ref import gguf
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.engines.hf import from_gguf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.pairs import Pair
from llava_ref.tracing.distance import rel_rms

BOUNDS = {"hf": 2e-5, "llama.cpp": 5e-3}
UNSAID = ("tokenizer.chat_template",)


def saved(case: Case | Pair, folder: Path, tokenizer_of: Any, prompts: ModuleType, ends: tuple[str, str]) -> Path:
    """Write a folder as transformers does: model, tokenizer (with BOS and EOS `ends`) and image processor."""
    model: Any = from_gguf.load(case.text, case.mmproj)
    model.module.save_pretrained(folder)
    tokenizer = tokenizer_of(model.text_file)
    tokenizer.bos_token, tokenizer.eos_token = ends
    tokenizer.save_pretrained(folder)
    prompts.image_processor(model.vision).save_pretrained(folder)
    return folder


def converted(folder: Path) -> Pair:
    """Convert a folder, in float32."""
    return convert.convert_folder(folder, str(folder.parent / "made"), "F32")


def assert_same_files(
    made: Pair, case: Case | Pair, otherwise: Collection[str] = UNSAID, rounded: tuple[str, ...] = ()
) -> None:
    """Every tensor is equal bit for bit, one whose name ends as in `rounded` to the last bit; and every key that a
    folder can say: all but those `otherwise`."""
    assert case.mmproj is not None
    for found, want in ((made.text, case.text), (made.mmproj, case.mmproj)):
        ours, theirs = gguf.read(found), gguf.read(want)
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, view in theirs.tensors.items():
            other = ours.tensors[name]
            assert (other.type, other.shape) == (view.type, view.shape), name
            if name.endswith(rounded or ("\0",)):
                a, b = (np.frombuffer(x.data, np.float32) for x in (other, view))
                assert np.abs(a - b).max() <= 2e-7, name
            else:
                assert bytes(other.data) == bytes(view.data), name
        assert not [key for key in theirs if key not in otherwise and (key not in ours or ours[key] != theirs[key])]


def assert_same_ids(made: Pair, strings: Sequence[str], tokenizer: Any, *, llama_cpp: bool = True) -> None:
    """A converted vocabulary cuts strings as transformers' `tokenizer` and llama.cpp do."""
    model = llava_ref.load(made.text, made.mmproj, backend="numpy")
    wanted = [list(tokenizer(string, add_special_tokens=False)["input_ids"]) for string in strings]
    assert [model.tokenizer.encode(string) for string in strings] == wanted
    if llama_cpp:
        assert oracle.Oracle(made.text).tokenize(strings, bos=False) == wanted


def distance_said(made: Pair, case: Case, profile: str) -> float:
    """Return how far a converted pair's logits are from what the profile's reference says of the first pair."""
    engine: Any = Transformers() if profile == "hf" else LlamaCpp()
    model = llava_ref.load(made.text, made.mmproj, backend="numpy", profile=profile)
    logits = model.request_logits(model.raw_request(case.prompt, case.images))
    return rel_rms(logits, engine.run(case).stages["result_output"])
