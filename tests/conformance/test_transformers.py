"""Profile `llava` against transformers' LlavaForConditionalGeneration, through a GGUF pair that the converter wrote."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.vocabulary import n_vocab
from llava_ref.loading import load
from llava_ref.profiles import PROFILES, Quirks, describe
from llava_ref.tracing.distance import rel_rms

reason = reference_hf.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
BOUND = 2e-5
LLAVA = PROFILES["llava"]
SHAPE = reference_hf.Shape(n_vocab=n_vocab(), image_token=n_vocab() - 1)
YARN = (("rope_type", "yarn"), ("rope_theta", 1e4), ("factor", 4.0), ("original_max_position_embeddings", 32))
LLAMA3 = (
    ("rope_type", "llama3"),
    ("rope_theta", 5e5),
    ("factor", 8.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 64),
)
VARIANTS = {
    "linear": replace(SHAPE, rope=(("rope_type", "linear"), ("rope_theta", 1e4), ("factor", 4.0))),
    "yarn": replace(SHAPE, rope=YARN),
    "yarn, own length": replace(SHAPE, rope=(*YARN, ("attention_factor", 1.3))),
    "llama3": replace(SHAPE, rope=LLAMA3),
    "biases": replace(SHAPE, attention_bias=True),
    "tied": replace(SHAPE, tied=True),
    "gelu": replace(SHAPE, use_gelu=True),
    "MQA": replace(SHAPE, n_head_kv=1),
}


@dataclass(frozen=True)
class Case:
    """A model, a prompt with a picture in it, and transformers' answers."""

    pair: pairs.Pair
    pixels: np.ndarray  # (3, S, S)
    before: list[int]
    after: list[int]
    rows: np.ndarray  # (N, D)
    logits: np.ndarray  # (T, V)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(shape: reference_hf.Shape, seed: int) -> Case:
        model = reference_hf.build(shape, seed)
        prefix = str(tmp_path_factory.mktemp("pair") / "random")
        pair = convert.from_module(model, pairs.vocabulary(), prefix)
        rng = np.random.default_rng(seed)
        pixels = rng.standard_normal((3, shape.image_size, shape.image_size)).astype(np.float32)
        before, after = [1, *rng.integers(3, 400, 9).tolist()], rng.integers(3, 400, 13).tolist()
        ids = [*before, *[shape.image_token] * shape.n_patches, *after]
        rows, logits = reference_hf.image_rows(model, pixels), reference_hf.logits(model, ids, pixels)
        return Case(pair, pixels, before, after, rows, logits)

    return make


def run(case: Case, backend: str, quirks: Quirks = LLAVA, pair: pairs.Pair | None = None) -> tuple[float, float]:
    """Return relRMS of image rows, and of logits with our own rows."""
    files = pair or case.pair
    model = load(files.text, files.mmproj, backend=backend, threads=1, quirks=describe(quirks))
    rows = model.encode(case.pixels[None])
    logits = model.forward([case.before, rows, case.after])
    return rel_rms(rows, case.rows), rel_rms(logits, case.logits)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("n_head_kv", [3, 6], ids=["GQA", "MHA"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_and_logits(case: Any, within: Any, backend: str, n_head_kv: int, seed: int) -> None:
    rows, logits = run(case(replace(SHAPE, n_head_kv=n_head_kv), seed), backend)
    within(f"transformers, image rows, {backend}", rows, BOUND)
    within(f"transformers, logits, {backend}", logits, BOUND)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants(case: Any, within: Any, backend: str, name: str) -> None:
    rows, logits = run(case(VARIANTS[name], 3), backend)
    within(f"transformers, image rows, {backend}", rows, BOUND)
    within(f"transformers, logits, {backend}", logits, BOUND)


@pytest.mark.parametrize(
    "fault",
    [replace(LLAVA, class_token="last"), replace(LLAVA, gelu="tanh")],
    ids=["class token last", "tanh GELU in the projector"],
)
def test_a_wrong_quirk_is_caught(case: Any, fault: Quirks) -> None:
    rows, logits = run(case(SHAPE, 0), "numpy", fault)
    assert min(rows, logits) > BOUND, "the bound could not see it"


def test_q_and_k_in_the_wrong_order_are_caught(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_ref.conformance.convert.hf_weights.adjacent_pairs", lambda n_head: lambda rows: rows)
    model = reference_hf.build(SHAPE, 0)
    pair = convert.from_module(model, pairs.vocabulary(), str(tmp_path / "wrong"))
    assert run(case(SHAPE, 0), "numpy", pair=pair)[1] > BOUND


def test_a_rope_base_one_percent_off_is_caught(case: Any, tmp_path: Path) -> None:
    model = reference_hf.build(SHAPE, 0)
    model.config.text_config.rope_parameters["rope_theta"] *= 1.01
    pair = convert.from_module(model, pairs.vocabulary(), str(tmp_path / "wrong"))
    assert run(case(SHAPE, 0), "numpy", pair=pair)[1] > BOUND
