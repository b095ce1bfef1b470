"""Real weights: Gemma 3 270M against transformers and llama.cpp, its vocabulary of 262,144 tokens among them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llava_ref import gguf
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs import gemma3_270m
from llava_ref.generation.session import Session
from llava_ref.loading import load
from llava_ref.model import Llava
from llava_ref.tokenizer.tokenizer import Tokenizer
from llava_ref.tracing.distance import rel_rms

from .test_tokenizers import compare, texts

PARTS = gemma3_270m.find()
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(PARTS is None, reason=f"not installed: {gemma3_270m.INSTALL}"),
]
needs_llama = pytest.mark.skipif(bool(oracle.missing()), reason=str(oracle.missing()))
needs_transformers = pytest.mark.skipif(bool(reference_hf.missing()), reason=str(reference_hf.missing()))
ADD = "def add(a, b):\n    return a"
TEXTS = ["The capital of France is", ADD, "Gravity keeps 9 planets (or 8?) on their orbits; "]
LONG = " ".join(map(str, range(170)))  # of more tokens than the window of 512
MARKED = ["<start_of_turn>user\n\n\n  é漢🦙<end_of_turn>\n<start_of_turn>model\n", "<bos>a <b>b</b>\t\t<unused3> <eos>"]
BOUND = 5e-5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert PARTS is not None
    return gemma3_270m.join(PARTS, tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def file(path: Path) -> Any:
    return gguf.read(path)


@pytest.fixture(scope="module")
def prompts(file: Any) -> list[list[int]]:
    return [encoded(file, text) for text in TEXTS]


def encoded(file: Any, text: str) -> list[int]:
    """Encode a text behind BOS."""
    return [file["tokenizer.ggml.bos_token_id"], *Tokenizer.from_gguf(file).encode(text)]


@pytest.fixture(scope="module", params=["torch", "numpy"])
def ours(request: pytest.FixtureRequest, path: Path) -> Llava:
    return load(path, None, backend=request.param, threads=1)


@pytest.fixture(scope="module")
def model(path: Path) -> Any:
    if reason := reference_hf.missing():
        pytest.skip(reason)
    from llava_ref.conformance.engines.hf import from_gguf

    return from_gguf.load(path, None)


def test_a_spoiled_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"gemma-3-270m-q4_k_m\.gguf: sha256: .*, expected a5fd3b62"):
        gemma3_270m.join((tmp_path / "part",), tmp_path)


@pytest.fixture(scope="module")
def wanted(model: Any, prompts: list[list[int]], file: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """Return transformers' logits at every position of each prompt, and at the last one of the long text."""
    ids = torch.tensor([encoded(file, LONG)])
    with torch.no_grad():
        last = model.module(input_ids=ids, logits_to_keep=1).logits[0, -1].numpy()
    return [model.forward(prompt, None).logits[0].numpy() for prompt in prompts], last


def test_logits_of_transformers(ours: Llava, wanted: Any, prompts: list[list[int]], within: Any) -> None:
    for prompt, want in zip(prompts, wanted[0], strict=True):
        within(f"Gemma 3 270M, logits, transformers, {ours.ops.name}", rel_rms(ours.forward([prompt]), want), BOUND)


def test_a_text_longer_than_the_window(ours: Llava, wanted: Any, file: Any, within: Any) -> None:
    prompt = encoded(file, LONG)
    assert len(prompt) > file["gemma3.attention.sliding_window"] + 20
    found = ours.session().feed([prompt])
    within(f"Gemma 3 270M, logits, transformers, {ours.ops.name}", rel_rms(found, wanted[1]), BOUND)


def test_it_goes_on_sensibly(ours: Llava, file: Any, prompts: list[list[int]]) -> None:
    tokenizer = Tokenizer.from_gguf(file)
    assert tokenizer.decode(greedy(ours.session(), prompts[1], 11)).startswith(" + b\n\ndef sub(a, b):")


def greedy(session: Session, prompt: list[int], count: int) -> list[int]:
    tokens = [int(session.feed([prompt]).argmax())]
    while len(tokens) < count:
        tokens.append(int(session.feed([tokens[-1:]]).argmax()))
    return tokens


@needs_llama
def test_llama_cpp_says_nearly_the_same(ours: Llava, path: Path, prompts: list[list[int]], within: Any) -> None:
    """The bound is wide because llama.cpp rounds activations to eight bits if weights are narrow."""
    for prompt, want in zip(prompts, oracle.Oracle(path).logits([[prompt] for prompt in prompts]), strict=True):
        found = ours.forward([prompt])
        within(f"Gemma 3 270M, logits, llama.cpp, {ours.ops.name}", rel_rms(found, want.logits), 1e-1)


@needs_llama
def test_llama_cpp_has_the_same_ids(path: Path, prompts: list[list[int]]) -> None:
    assert oracle.Oracle(path).tokenize(TEXTS) == prompts
    compare([path], [*texts(300), *MARKED, "\n" * 40, " " * 40 + "a"])


@needs_transformers
def test_transformers_tokenizer_has_the_same_ids(file: Any) -> None:
    """Its pieces and merges come from the file, as in transformers' own converter. It counts a typed "▁" as one of a
    run of blanks, which llama.cpp does not: texts with one are left out."""
    from llava_ref.conformance.engines.hf.gemma3_prompt import gemma_tokenizer

    theirs, ours = gemma_tokenizer(file), Tokenizer.from_gguf(file)
    strings = [text for text in (*TEXTS, *MARKED, LONG, *texts(300)) if "▁" not in text]
    wrong = [string for string in strings if theirs(string)["input_ids"][1:] != ours.encode(string)]
    assert not wrong, f"{len(wrong)} of {len(strings)} texts, first {wrong[0]!r}"


def test_another_epsilon_is_caught(ours: Llava, wanted: Any, prompts: list[list[int]]) -> None:
    text: Any = ours.text
    wrong = replace(text.settings, text=replace(text.config, eps=1e-5))
    found = Session(replace(text, settings=wrong)).feed([prompts[0]], all_logits=True)
    assert rel_rms(found, wanted[0][0]) > BOUND
