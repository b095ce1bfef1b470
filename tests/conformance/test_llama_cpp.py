"""Profile `llama.cpp` against llama.cpp itself, settings EXACT, on random float32 pairs with every option turned."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec
from llava_ref.generation.session import Session
from llava_ref.generation.units import Part
from llava_ref.loading import load
from llava_ref.model import Llava
from llava_ref.profiles import PROFILES, Quirks, describe
from llava_ref.tracing.distance import kl, max_abs, rel_rms

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
LOGITS, ROWS, N_GREEDY = 5e-6, 2e-3, 12
LLAMA = PROFILES["llama.cpp"]
VARIANTS = {
    "GQA": (TextSpec(), VisionSpec()),
    "MHA, use_gelu": (TextSpec(n_head_kv=4), VisionSpec(use_gelu=True)),
    "MQA, post_ln": (TextSpec(n_head_kv=1), VisionSpec(post_ln=True)),
    "tied, feature_layer all": (TextSpec(tied=True), VisionSpec(feature_layer=4)),
    "biases, feature_layer 2, post_ln": (TextSpec(biases=True), VisionSpec(feature_layer=2, post_ln=True)),
    "linear, swapped": (TextSpec(rope_scaling="linear"), VisionSpec(swapped=True)),
    "yarn, no class token": (TextSpec(rope_scaling="yarn"), VisionSpec(class_token=False)),
    "yarn from 64, no pre_ln": (
        TextSpec(rope_scaling="yarn", rope_base=500.0, original_context=64),
        VisionSpec(pre_ln=False),
    ),
    "divisors, small patches": (TextSpec(rope_divisors=True, rope_base=5e5), VisionSpec(patch_size=8)),
    "large eps": (TextSpec(eps=0.05), VisionSpec(eps=0.05)),
    "larger": (TextSpec(width=192, n_layer=4, n_head=6, mlp_width=400), VisionSpec(width=96, mlp_width=200)),
}


@dataclass(frozen=True)
class Case:
    """A pair, a picture, prompts with and without it, and llama.cpp's answers."""

    pair: pairs.Pair
    image: oracle.ImageResult
    prompts: list[list[Part]]
    answers: list[oracle.TextResult]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> Case:
        pair = pairs.build(tmp_path_factory.mktemp("pair"), *VARIANTS[name])
        rng = np.random.default_rng(len(name))
        llama = oracle.Oracle(pair.text, pair.mmproj)
        (image,) = llama.encode([rng.integers(0, 256, (61, 45, 3), np.uint8)])
        ids = [rng.integers(3, 400, n).tolist() for n in (5, 30, 1, 17)]
        prompts: list[list[Part]] = [[[1, *ids[0]], image.rows, ids[1]], [[1, *ids[1]]], [ids[2]], [[1, *ids[3]]]]
        return Case(pair, image, prompts, llama.logits(prompts, greedy=N_GREEDY))

    return make


def model_of(pair: pairs.Pair, backend: str = "numpy", quirks: Quirks = LLAMA) -> Llava:
    return load(pair.text, pair.mmproj, backend=backend, threads=1, quirks=describe(quirks))


def continued(session: Session, prompt: list[Part]) -> list[int]:
    tokens = [int(session.feed(prompt).argmax())]
    while len(tokens) < N_GREEDY:
        tokens.append(int(session.feed([tokens[-1:]]).argmax()))
    return tokens


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_greedy_tokens(case: Any, within: Any, name: str, backend: str) -> None:
    c, ours = case(name), model_of(case(name).pair, backend)
    for prompt, want in zip(c.prompts, c.answers, strict=True):
        found = ours.session().feed(prompt, all_logits=True)
        with_image = "with the same image rows" if len(prompt) > 1 else "text only"
        within(f"llama.cpp, logits {with_image}, {backend}", rel_rms(found, want.logits), LOGITS)
        within(f"llama.cpp, logits {with_image}, {backend}: max abs", max_abs(found, want.logits), 2e-4)
        within(f"llama.cpp, logits {with_image}, {backend}: KL", kl(found, want.logits).max(), 1e-9)
        assert continued(ours.session(), prompt) == list(want.tokens)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", VARIANTS)
def test_image_rows(case: Any, within: Any, name: str, backend: str) -> None:
    c = case(name)
    rows = model_of(c.pair, backend).encode(c.image.pixels[None])
    within(f"llama.cpp, image rows, {backend}", rel_rms(rows, c.image.rows), ROWS)


def test_a_picture_end_to_end_gives_the_same_tokens(case: Any, within: Any) -> None:
    """Our own image rows differ by llama.cpp's float16 tables."""
    for name in VARIANTS:
        c, ours = case(name), model_of(case(name).pair)
        prompt = [c.prompts[0][0], ours.encode(c.image.pixels[None]), c.prompts[0][2]]
        found = ours.session().feed(prompt, all_logits=True)
        within("llama.cpp, logits with our own image rows", rel_rms(found, c.answers[0].logits), 5e-3)
        assert continued(ours.session(), prompt) == list(c.answers[0].tokens)


@pytest.mark.parametrize("kind, logits, rows", [("F16", 5e-3, 2e-3), ("BF16", 2e-2, 2e-2), ("Q8_0", 6e-2, 5e-2)])
def test_narrow_types(tmp_path: Path, within: Any, kind: str, logits: float, rows: float) -> None:
    """This is a smoke test: llama.cpp rounds activations to the weights' type, and float32 cannot follow that."""
    text, vision = TextSpec(width=64, mlp_width=96, kind=kind), VisionSpec(width=64, mlp_width=96, middle=64, kind=kind)
    pair = pairs.build(tmp_path, text, vision, calm=True)
    llama, ours = oracle.Oracle(pair.text, pair.mmproj), model_of(pair, "torch")
    (image,) = llama.encode([np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)])
    prompt: list[Part] = [[1, 5, 300], image.rows, list(range(310, 330))]
    (want,) = llama.logits([prompt])
    within(f"llama.cpp, image rows, {kind}", rel_rms(ours.encode(image.pixels[None]), image.rows), rows)
    within(f"llama.cpp, logits, {kind}", rel_rms(ours.session().feed(prompt, all_logits=True), want.logits), logits)


def test_settings_exact_are_needed(case: Any, within: Any) -> None:
    """With its own defaults llama.cpp computes attention in float16, a hundred times as far from EXACT as we are."""
    c = case("GQA")
    (loose,) = oracle.Oracle(c.pair.text, settings=oracle.DEFAULTS).logits(c.prompts[1:2])
    assert rel_rms(loose.logits, c.answers[1].logits) > 20 * LOGITS
    found = model_of(c.pair).session().feed(c.prompts[1], all_logits=True)
    within("llama.cpp with its defaults, logits", rel_rms(found, loose.logits), 3e-3)


def test_llama_cpp_ignores_the_sliding_window_of_a_llama_file(tmp_path: Path) -> None:
    """Profile `llama.cpp` ignores it too; honouring it would be caught."""
    ids = np.random.default_rng(0).integers(3, 400, 30).tolist()
    answers = []
    for window in (None, 8):
        pair = pairs.build(tmp_path, TextSpec(window=window), VisionSpec())
        answers.append(oracle.Oracle(pair.text).logits([[ids]])[0].logits)
    assert (answers[0] == answers[1]).all()
    found, honoured = (
        model_of(pair, quirks=quirks).session().feed([ids], all_logits=True)
        for quirks in (LLAMA, replace(LLAMA, window="honour"))
    )
    assert rel_rms(found, answers[1]) < LOGITS < rel_rms(honoured, answers[1])


FAULTS = {  # what is wrong: the variant it is done to, and how
    "class token first": ("GQA", {"class_token": "first"}),
    "one layer more": ("GQA", {"vit_layers": "stored"}),
    "post_ln left out": ("MQA, post_ln", {"post_ln": "skip"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_quirk_is_caught(case: Any, fault: str) -> None:
    name, change = FAULTS[fault]
    c = case(name)
    rows = model_of(c.pair, quirks=replace(LLAMA, **change)).encode(c.image.pixels[None])
    assert rel_rms(rows, c.image.rows) > ROWS, "the bound could not see it"


@pytest.mark.parametrize(
    "name, text, vision",
    [
        ("large eps", {"eps": 0.045}, {"eps": 0.045}),
        ("linear, swapped", {"rope_base": 10100.0}, {"use_gelu": True}),
        ("yarn from 64, no pre_ln", {"rope_factor": 4.1}, {"feature_layer": 4}),
        ("divisors, small patches", {"rope_divisors": False}, {"n_head": 8}),
        ("GQA", {"rope_base": 9900.0}, {"n_head": 2}),
    ],
)
def test_a_file_that_says_something_else_is_caught(
    case: Any, tmp_path: Path, name: str, text: dict[str, Any], vision: dict[str, Any]
) -> None:
    """Settings of the same weights a little off are caught: eps, rope, activation, layers, heads."""
    right_text, right_vision = VARIANTS[name]
    pair = pairs.build(tmp_path, replace(right_text, **text), replace(right_vision, **vision))
    c, ours = case(name), model_of(pair)
    assert rel_rms(ours.encode(c.image.pixels[None]), c.image.rows) > ROWS
    assert rel_rms(ours.session().feed(c.prompts[1], all_logits=True), c.answers[1].logits) > LOGITS
