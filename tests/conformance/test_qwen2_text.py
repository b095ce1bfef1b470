"""The text architecture qwen2 against llama.cpp, settings EXACT, and transformers' Qwen2ForCausalLM."""

from pathlib import Path
from typing import Any

import pytest

import llava_ref
from llava_ref import gguf
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec, qwen_text_metadata, qwen_text_tensors
from llava_ref.conformance.pairs.random_weights import Random
from llava_ref.conformance.pairs.writing import write
from llava_ref.models.qwen2 import Qwen2
from llava_ref.tracing.distance import rel_rms

from .reference_cases import EVERYTHING, differing, trace, worst

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
SPEC = QwenTextSpec(eps=0.05, sections=())  # large, so that an epsilon that nobody reads shows
PROMPT = "what is the color of a large small red circle"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.gguf"
    write(path, qwen_text_metadata(SPEC), qwen_text_tensors(SPEC, Random(0, 1.0)))
    return path


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_every_stage_of_llama_cpp(text: Path, within: Any, backend: str) -> None:
    model, case = llava_ref.load(text, None, backend=backend, profile="llama.cpp"), Case(text, None, (), PROMPT)
    run, ours = LlamaCpp(stages=EVERYTHING).run(case, n_greedy=8), trace(model, case)
    assert isinstance(model.text, Qwen2) and model.text.config.eps == pytest.approx(0.05)
    assert tuple(model.raw_request(PROMPT, ()).token_ids) == run.token_ids and len(run.stages) > 40
    assert not differing(ours, run.stages, 5e-6)
    within(f"Qwen2, llama.cpp EXACT, every stage, {backend}", worst(ours, run.stages), 5e-6)


def test_every_stage_of_transformers(text: Path, within: Any) -> None:
    model, case = llava_ref.load(text, None, profile="hf"), Case(text, None, (), PROMPT)
    run, ours = Transformers(stages=EVERYTHING).run(case, n_greedy=8), trace(model, case)
    assert len(run.stages) > 40 and not differing(ours, run.stages, 2e-5)
    within("Qwen2, transformers, every stage", worst(ours, run.stages), 2e-5)


def test_a_decoder_without_its_key_bias_is_seen(text: Path, tmp_path: Path) -> None:
    """A fault that is likely, where another implementation has no biases."""
    file, tensors = gguf.read(text), qwen_text_tensors(SPEC, Random(0, 1.0))
    keys = {key: file[key] for key in file}
    write(tmp_path / "text.gguf", keys, {name: x for name, x in tensors.items() if not name.endswith("attn_k.bias")})
    right, wrong = (llava_ref.load(path, None, profile="hf").logits(PROMPT) for path in (text, tmp_path / "text.gguf"))
    assert rel_rms(wrong, right) > 1e-2
