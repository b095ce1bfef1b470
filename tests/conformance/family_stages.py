"""What every family is held to: each stage, the tokens and the logits of both references, on its own random pairs.

A family's test file names its pair and its cases once, and inherits the tests; a method of its own takes the place of
one that does not fit it. The fixtures `case` and `ran` (conftest.py) read `FAMILY`, too.

    FAMILY = Family("Idefics3", build_idefics3, CASES, TextSpec(context=1024), TOWER)

    class TestStages(FamilyStages): ...
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_ref.conformance.compare.comparing import parts
from llava_ref.conformance.engines.reference import Case, Run
from llava_ref.conformance.engines.stages import ordered
from llava_ref.conformance.pairs.pairs import Pair
from llava_ref.generation.units import PictureRows
from llava_ref.model import Llava
from llava_ref.tracing.distance import kl, max_abs, rel_rms

from .reference_cases import EVERYTHING, N_GREEDY, OF_PICTURES, differing, model_of, trace, worst

BOUND, PICTURES, WHOLE, DECODER = 2e-5, 2e-3, 5e-3, 5e-6
BACKENDS = pytest.mark.parametrize("backend", ["torch", "numpy"])


@dataclass(frozen=True)
class Asked:
    """A prompt, the width and height of its pictures, and a pair; None for the family's own."""

    prompt: str
    sizes: tuple[tuple[int, int], ...] = ()
    text: Any = None
    vision: Any = None


@dataclass(frozen=True)
class Family:
    """A family's name in the table of figures, what writes its random pairs, its cases, and the specs of most pairs."""

    name: str
    build: Callable[[Path, Any, Any], Pair]
    cases: Mapping[str, Asked]
    text: Any
    vision: Any
    looks: bool = False
    """Layers look at pictures: their keys are computed before any row."""

    def write(self, folder: Path, asked: Asked) -> Case:
        """Write the files of a case into `folder`."""
        pair = self.build(folder, asked.text or self.text, asked.vision or self.vision)
        images = tuple(folder / f"{i}.png" for i in range(len(asked.sizes)))
        for path, (width, height) in zip(images, asked.sizes, strict=True):
            rng = np.random.default_rng(height)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        return Case(pair.text, pair.mmproj, images, asked.prompt)


def greedy(model: Llava, case: Case) -> tuple[int, ...]:
    """Return the likeliest tokens; a token that ends generation does not end them."""
    session, tokens = model.session(), list[int]()
    logits = session.feed(model.parts(model.raw_request(case.prompt, case.images)))
    while len(tokens) < N_GREEDY:
        tokens.append(int(logits.argmax()))
        logits = session.feed([tokens[-1:]])
    return tuple(tokens)


def of_pictures(stages: Mapping[str, np.ndarray], wanted: bool = True) -> dict[str, np.ndarray]:
    return {stage: array for stage, array in stages.items() if stage.startswith(OF_PICTURES) == wanted}


def assert_pixels_equal(ours: Mapping[str, np.ndarray], run: Run) -> None:
    for stage, array in run.stages.items():
        assert not stage.startswith(("image.", "vision.pixels")) or (ours[stage] == array).all(), stage


def assert_same_stages(ours: Iterable[str], theirs: Iterable[str]) -> None:
    """The same names, in the order in which they are computed; the order of tiles is each engine's own."""
    ours, theirs = list(ours), list(theirs)
    assert set(ours) == set(theirs)
    assert list(dict.fromkeys(map(plain, ours))) == list(dict.fromkeys(map(plain, theirs)))


def plain(stage: str) -> str:
    """Return a stage's name without the number of its tile or picture."""
    return stage.partition("#")[0]


def assert_same_input(model: Llava, case: Case, run: Run) -> None:
    assert tuple(model.raw_request(case.prompt, case.images).token_ids) == run.token_ids


def fed_parts(run: Run, model: Llava) -> list[Any]:
    """Return the prompt of a run: its tokens, and the rows that the reference's own tower made of its pictures."""

    def of(stage: str) -> list[np.ndarray]:
        return [array for name, array in run.stages.items() if plain(name) == stage]

    rows: list[Any] = of("projector.out")
    if model.text.GRID_POSITIONS:
        grids = [model.span(rgb.shape[1], rgb.shape[0]).grid for rgb in of("image.rgb")]
        rows = [PictureRows(*given) for given in zip(rows, grids, strict=True)]
    return list(parts(run.token_ids, rows))


class Cases:
    """Tests that take the `name` of each case of the module's `FAMILY`."""

    @staticmethod
    def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", metafunc.module.FAMILY.cases)

    @pytest.fixture
    def family(self, request: pytest.FixtureRequest) -> Family:
        found: Family = request.module.FAMILY
        return found


class TransformersStages(Cases):
    """Every case of the module's `FAMILY` against transformers (profile hf)."""

    @BACKENDS
    def test_every_stage_of_transformers(
        self, family: Family, case: Any, ran: Any, within: Any, name: str, backend: str
    ) -> None:
        c, run, model = case(name), ran(name, "hf"), model_of(case(name), "hf", backend)
        ours = trace(model, c)
        assert_same_input(model, c, run)
        assert_same_stages(ordered(ours) if family.looks else ours, run.stages)
        assert not differing(ours, run.stages, BOUND)
        assert_pixels_equal(ours, run)
        within(f"{family.name}, transformers, every stage, {backend}", worst(ours, run.stages), BOUND)
        logits = rel_rms(ours["result_output"], run.stages["result_output"])
        within(f"{family.name}, transformers, logits, {backend}", logits, BOUND)
        assert greedy(model, c) == run.greedy

    def test_profile_llava_means_the_same(self, case: Any, ran: Any, name: str) -> None:
        ours, run = trace(model_of(case(name), "llava"), case(name)), ran(name, "hf")
        assert set(ours) == set(run.stages) and not differing(ours, run.stages, BOUND)


class FamilyStages(TransformersStages):
    """The same, and against llama.cpp (settings EXACT)."""

    @BACKENDS
    def test_every_stage_of_llama_cpp(
        self, family: Family, case: Any, ran: Any, within: Any, name: str, backend: str
    ) -> None:
        c, run, model = case(name), ran(name, "llama.cpp"), model_of(case(name), "llama.cpp", backend)
        ours = trace(model, c)
        assert_same_input(model, c, run)
        assert_same_stages((stage for stage in ours if not stage.startswith("image.seen")), run.stages)
        pictures = of_pictures(run.stages)
        assert not differing(ours, pictures, PICTURES)
        assert_pixels_equal(ours, run)
        logits = ours["result_output"], run.stages["result_output"]
        if pictures:
            within(f"{family.name}, llama.cpp EXACT, image rows, {backend}", worst(ours, pictures), PICTURES)
        within(f"{family.name}, llama.cpp EXACT, end to end, logits, {backend}", rel_rms(*logits), WHOLE)
        within(f"{family.name}, llama.cpp EXACT, end to end, KL, {backend}", kl(*logits).max(), 5e-4)
        assert greedy(model, c) == run.greedy

    def fed(self, case: Case, run: Run, model: Llava) -> list[Any]:
        """Return llama.cpp's prompt with the rows of its own tower."""
        return fed_parts(run, model)

    @BACKENDS
    def test_the_decoder_of_llama_cpp_given_its_image_rows(
        self, family: Family, case: Any, ran: Any, within: Any, name: str, backend: str
    ) -> None:
        run, model = ran(name, "llama.cpp"), model_of(case(name), "llama.cpp", backend)
        with model.trace(*EVERYTHING) as fed:
            model.forward(self.fed(case(name), run, model))
        wanted = of_pictures(run.stages, False)
        assert not differing(fed, wanted, DECODER)
        logits, what = (fed["result_output"], wanted["result_output"]), f"{family.name}, llama.cpp EXACT"
        within(f"{what}, logits, its image rows, {backend}", rel_rms(*logits), DECODER)
        within(f"{what}, its image rows: max abs, {backend}", max_abs(*logits), 2e-4)
        within(f"{what}, its image rows: KL, {backend}", kl(*logits).max(), 1e-9)


class WholePictureStages(FamilyStages):
    """A family whose pictures are not cut into tiles: what one picture becomes by itself is the reference's, too."""

    def test_image_rows_of_transformers_from_the_file(
        self, family: Family, case: Any, ran: Any, within: Any, name: str
    ) -> None:
        run, model = ran(name, "hf"), model_of(case(name), "hf", "torch")
        for i, path in enumerate(case(name).images):
            number = f"#{i}" if i else ""
            rgb = model.preprocess(model.decode_image(path))
            assert (rgb.seen == run.stages[f"image.seen{number}"]).all()
            assert (rgb.pixels[0] == run.stages[f"vision.pixels{number}"]).all()
            error = rel_rms(model.encode_image(path), run.stages[f"projector.out{number}"])
            within(f"{family.name}, transformers, image rows, torch", error, BOUND)
