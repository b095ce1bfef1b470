"""The whole way in profile `llama.cpp`: a prompt with pictures -> the same chunks as llama.cpp's own pipeline makes,
nearly the same logits, and the same greedy tokens."""

from typing import Any

import numpy as np
import pytest

from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs import pairs
from llava_ref.generation.units import Part, PictureRows
from llava_ref.loading import load
from llava_ref.model import Llava
from llava_ref.tracing.distance import kl, rel_rms

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
N_GREEDY = 8
PROMPTS = [  # <image> is where a picture goes
    "USER: <image>\nwhat color is the circle? ASSISTANT:",
    "<image>the",
    "what is the shape <image><image> and how many</s>a small one",
    "  two spaces, é and 漢 <image> ",
    "no picture at all</s><s> the blue square",
]


@pytest.fixture(scope="module", params=[40, 64], ids=["heads of 10", "heads of 16"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pairs.Pair:
    text = pairs.TextSpec(width=request.param)
    return pairs.build(tmp_path_factory.mktemp("pair"), text, pairs.VisionSpec(image_size=42), seed=request.param)


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return [rng.integers(0, 256, (33 + 20 * i, 77 - 20 * i, 3), np.uint8) for i in range(count)]


def ours(pair: pairs.Pair, prompt: str, profile: str = "llama.cpp") -> tuple[Llava, list[Part]]:
    model = load(pair.text, pair.mmproj, backend="numpy", threads=1, profile=profile)
    return model, model.parts(model.raw_request(prompt, pictures(prompt.count("<image>"))))


def theirs(pair: pairs.Pair, prompt: str) -> oracle.PromptResult:
    marked = prompt.replace("<image>", "<__media__>")
    return oracle.Oracle(pair.text, pair.mmproj).prompt(marked, pictures(prompt.count("<image>")), greedy=N_GREEDY)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt(pair: pairs.Pair, within: Any, prompt: str) -> None:
    want, (model, parts) = theirs(pair, prompt), ours(pair, prompt)
    assert [len(part) if isinstance(part, PictureRows) else tuple(part) for part in parts] == list(want.chunks)
    logits = model.forward(parts)
    within("llama.cpp, end to end, logits", rel_rms(logits, want.logits), 5e-3)
    within("llama.cpp, end to end, KL", kl(logits, want.logits).max(), 5e-4)
    session = model.session()
    tokens = [int(session.feed(parts).argmax())]
    while len(tokens) < N_GREEDY:
        tokens.append(int(session.feed([tokens[-1:]]).argmax()))
    assert tokens == list(want.tokens)


def test_the_originals_rules_are_not_llama_cpps(pair: pairs.Pair) -> None:
    want, (model, parts) = theirs(pair, PROMPTS[0]), ours(pair, PROMPTS[0], "llava")
    assert rel_rms(model.forward(parts), want.logits) > 0.1
