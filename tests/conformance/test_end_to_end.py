"""The whole way in profile `llama.cpp`: a prompt with pictures -> the same chunks as llama.cpp's own pipeline makes,
nearly the same logits, and the same greedy tokens."""

from typing import Any

import numpy as np
import pytest

from llava_ref import gguf
from llava_ref.chat.chunks import TextChunk, chunks, raw
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs import pairs
from llava_ref.generation.engine import Engine, Part
from llava_ref.images.preprocess import preprocess
from llava_ref.profiles import PROFILES, Quirks
from llava_ref.tokenizer.tokenizer import Tokenizer
from llava_ref.tracing.distance import kl, rel_rms

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
LLAMA, N_GREEDY = PROFILES["llama.cpp"], 8
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


def ours(pair: pairs.Pair, prompt: str, quirks: Quirks = LLAMA) -> tuple[Engine, list[Part]]:
    text, mmproj = gguf.read(pair.text), gguf.read(pair.mmproj)
    engine, tokenizer = Engine(text, mmproj, backend="numpy", threads=1, quirks=quirks), Tokenizer.from_gguf(text)
    assert engine.vision is not None
    rgb = pictures(prompt.count("<image>"))
    parts: list[Part] = []
    for chunk in chunks(raw(prompt, len(rgb), tokenizer), tokenizer, quirks):
        if isinstance(chunk, TextChunk):
            parts.append(list(chunk.token_ids))
        else:
            parts.append(engine.encode(preprocess(rgb[chunk.index], engine.vision, quirks).pixels[0]))
    return engine, parts


def theirs(pair: pairs.Pair, prompt: str) -> oracle.PromptResult:
    marked = prompt.replace("<image>", "<__media__>")
    return oracle.Oracle(pair.text, pair.mmproj).prompt(marked, pictures(prompt.count("<image>")), greedy=N_GREEDY)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt(pair: pairs.Pair, within: Any, prompt: str) -> None:
    want, (engine, parts) = theirs(pair, prompt), ours(pair, prompt)
    assert [len(part) if isinstance(part, np.ndarray) else tuple(part) for part in parts] == list(want.chunks)
    logits = engine.session().feed(parts, all_logits=True)
    within("llama.cpp, end to end, logits", rel_rms(logits, want.logits), 5e-3)
    within("llama.cpp, end to end, KL", kl(logits, want.logits).max(), 5e-4)
    session = engine.session()
    tokens = [int(session.feed(parts).argmax())]
    while len(tokens) < N_GREEDY:
        tokens.append(int(session.feed([tokens[-1:]]).argmax()))
    assert tokens == list(want.tokens)


def test_the_originals_rules_are_not_llama_cpps(pair: pairs.Pair) -> None:
    want, (engine, parts) = theirs(pair, PROMPTS[0]), ours(pair, PROMPTS[0], PROFILES["llava"])
    assert rel_rms(engine.session().feed(parts, all_logits=True), want.logits) > 0.1
