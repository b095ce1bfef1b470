"""InternVL against transformers (profile hf) and llama.cpp (settings EXACT), stage by stage, on random pairs."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import llava_ref
from llava_ref.conformance.compare.comparing import parts
from llava_ref.conformance.engines.hf import internvl_prompt, settings
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case, Run
from llava_ref.tracing.distance import kl, max_abs, rel_rms

from .internvl_cases import CASES, N_GREEDY, case_of, greedy, model_of
from .reference_cases import EVERYTHING, OF_PICTURES, differing, trace, worst

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
BOUND, PICTURES, WHOLE, N_SIZES = 2e-5, 2e-3, 5e-3, 200


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda name: case_of(name, tmp_path_factory.mktemp("pair")))


@pytest.fixture(scope="module")
def ran(case: Any) -> Any:
    engines = {"hf": Transformers(stages=EVERYTHING), "llama.cpp": LlamaCpp(stages=EVERYTHING)}
    return cache(lambda name, profile: engines[profile].run(case(name), n_greedy=N_GREEDY))


def assert_pixels_equal(ours: Any, run: Run) -> None:
    for stage, array in run.stages.items():
        assert not stage.startswith(("image.", "vision.pixels")) or (ours[stage] == array).all(), stage


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_every_stage_of_transformers(case: Any, ran: Any, within: Any, name: str, backend: str) -> None:
    c, run, model = case(name), ran(name, "hf"), model_of(case(name), "hf", backend)
    ours = trace(model, c)
    assert tuple(model.raw_request(c.prompt, c.images).token_ids) == run.token_ids
    assert set(run.stages) == set(ours) and not differing(ours, run.stages, BOUND)
    assert_pixels_equal(ours, run)
    within(f"InternVL, transformers, every stage, {backend}", worst(ours, run.stages), BOUND)
    logits = rel_rms(ours["result_output"], run.stages["result_output"])
    within(f"InternVL, transformers, logits, {backend}", logits, BOUND)
    assert greedy(model, c) == run.greedy


def test_profile_llava_means_the_same(case: Any, ran: Any) -> None:
    name = "four of all shapes"
    ours, run = trace(model_of(case(name), "llava"), case(name)), ran(name, "hf")
    assert set(ours) == set(run.stages) and not differing(ours, run.stages, BOUND)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_every_stage_of_llama_cpp(case: Any, ran: Any, within: Any, name: str, backend: str) -> None:
    c, run, model = case(name), ran(name, "llama.cpp"), model_of(case(name), "llama.cpp", backend)
    ours = trace(model, c)
    assert tuple(model.raw_request(c.prompt, c.images).token_ids) == run.token_ids
    assert set(run.stages) == {stage for stage in ours if not stage.startswith("image.seen")}
    pictures = {stage: array for stage, array in run.stages.items() if stage.startswith(OF_PICTURES)}
    assert not differing(ours, pictures, PICTURES)
    assert_pixels_equal(ours, run)
    logits = ours["result_output"], run.stages["result_output"]
    within(f"InternVL, llama.cpp EXACT, image rows, {backend}", worst(ours, pictures), PICTURES)
    within(f"InternVL, llama.cpp EXACT, end to end, logits, {backend}", rel_rms(*logits), WHOLE)
    within(f"InternVL, llama.cpp EXACT, end to end, KL, {backend}", kl(*logits).max(), 5e-4)
    assert greedy(model, c) == run.greedy


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_the_decoder_of_llama_cpp_given_its_image_rows(
    case: Any, ran: Any, within: Any, name: str, backend: str
) -> None:
    run, model = ran(name, "llama.cpp"), model_of(case(name), "llama.cpp", backend)
    tiles = [array for stage, array in run.stages.items() if stage.partition("#")[0] == "projector.out"]
    logits, want = model.forward(list(parts(run.token_ids, tiles))), run.stages["result_output"]
    within(f"InternVL, llama.cpp EXACT, logits, its image rows, {backend}", rel_rms(logits, want), 5e-6)
    within(f"InternVL, llama.cpp EXACT, its image rows: max abs, {backend}", max_abs(logits, want), 2e-4)
    within(f"InternVL, llama.cpp EXACT, its image rows: KL, {backend}", kl(logits, want).max(), 1e-9)


def random_sizes() -> list[tuple[int, int]]:
    """Draw widths and heights from 1 to 600, small as often as large."""
    rng = np.random.default_rng(16)
    return [tuple(int(n) for n in np.exp(rng.uniform(0, np.log(600), 2))) for _ in range(N_SIZES)]  # type: ignore[misc]


@pytest.mark.parametrize("name", ["four of all shapes", "two tiles at least", "one tile"])
def test_tiles_from_the_size_alone_are_transformers(case: Any, name: str) -> None:
    c, spec, sizes = case(name), CASES[name].vision, random_sizes()
    vision = settings.read_tower(llava_ref.gguf.read(c.mmproj))
    vision = replace(vision, tiles=(spec.least_tiles, spec.most_tiles))
    tiles: Any = model_of(c, "hf").tower
    assert [tiles.plan.tiles.n_tiles(*size) for size in sizes] == internvl_prompt.n_tiles(sizes, vision)


@pytest.mark.parametrize("name", ["four of all shapes", "two tiles at least", "one tile"])
def test_positions_from_the_size_alone_are_llama_cpp_s(case: Any, name: str) -> None:
    c, sizes = case(name), random_sizes()
    model = model_of(c, "llama.cpp")
    pictures = [np.zeros((height, width, 3), np.uint8) for width, height in sizes]
    found = [len(image.rows) for image in oracle.Oracle(c.text, c.mmproj, timeout=600).encode(pictures)]
    assert [model.span(*size).n_rows for size in sizes] == found


def test_a_text_file_without_the_picture_s_token_is_refused(case: Any, tmp_path: Any) -> None:
    c, text = case("one tile"), tmp_path / "text.gguf"
    text.write_bytes(c.text.read_bytes().replace(b"<IMG_CONTEXT>", b"<img_context>"))
    with pytest.raises(llava_ref.LlavaError, match="has no <IMG_CONTEXT>, the processor's image token"):
        Transformers().run(Case(text, c.mmproj, c.images, c.prompt))
