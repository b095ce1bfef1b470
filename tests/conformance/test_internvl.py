"""InternVL against transformers (profile hf) and llama.cpp (settings EXACT), stage by stage, on random pairs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llava_ref
from llava_ref.conformance.engines.hf import internvl_prompt, settings
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case, ReferenceError
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec
from llava_ref.tracing.distance import rel_rms

from .family_stages import BACKENDS, BOUND, Asked, FamilyStages
from .internvl_cases import CASES, FAMILY, TALL, TOWER, WIDE
from .reference_cases import EVERYTHING, differing, model_of, random_sizes, trace, worst

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
EQUAL = [(x * n, y * n) for x, y in ((1, 1), (1, 2), (2, 1), (2, 3), (3, 1)) for n in (9, 14, 20, 28, 40, 57, 120)]
SIZES = [*random_sizes(600, lambda width, height: True), *EQUAL]  # the last of the aspect of several grids
COUNTED = pytest.mark.parametrize("name", ["four of all shapes", "two tiles at least", "one tile"])
__all__ = ["FAMILY"]


class TestStages(FamilyStages):
    pass


@BACKENDS
def test_the_large_tower_of_transformers(tmp_path: Path, within: Any, backend: str) -> None:
    """InternViT-6B's block. llama.cpp takes RMS norms by a tower's size alone, 3200 wide with 45 blocks."""
    asked = Asked("what <image> is<image>", (WIDE, TALL), vision=replace(TOWER, large=True, biases=False))
    case = FAMILY.write(tmp_path, asked)
    run, ours = Transformers(stages=EVERYTHING).run(case), trace(model_of(case, "hf", backend), case)
    assert set(ours) == set(run.stages) and not differing(ours, run.stages, BOUND)
    within(f"InternVL, a large tower, transformers, every stage, {backend}", worst(ours, run.stages), BOUND)


@pytest.mark.parametrize("kind, rows, logits", [("F16", 2e-3, 5e-3), ("Q8_0", 5e-2, 6e-2)])
def test_narrow_weights_of_llama_cpp(tmp_path: Path, within: Any, kind: str, rows: float, logits: float) -> None:
    text = QwenTextSpec(width=64, n_layer=2, mlp_width=96, sections=(), kind=kind)
    vision = replace(TOWER, width=64, n_head=2, mlp_width=96, middle=64, kind=kind)
    case = FAMILY.write(tmp_path, Asked("what <image> is the<image>", (WIDE, TALL), text, vision))
    run, ours = LlamaCpp(stages=EVERYTHING).run(case), trace(model_of(case, "llama.cpp", "torch"), case)
    apart = {name: rel_rms(ours[name], run.stages[name]) for name in ("projector.out", "result_output")}
    within(f"InternVL, {kind}, image rows", apart["projector.out"], rows)
    within(f"InternVL, {kind}, logits", apart["result_output"], logits)


@COUNTED
def test_tiles_from_the_size_alone_are_transformers(case: Any, name: str) -> None:
    c, spec = case(name), CASES[name].vision or TOWER
    vision = replace(settings.read_tower(llava_ref.gguf.read(c.mmproj)), tiles=(spec.least_tiles, spec.most_tiles))
    tower: Any = model_of(c, "hf").tower
    assert [tower.plan.tiles.n_tiles(*size) for size in SIZES] == internvl_prompt.n_tiles(SIZES, vision)


@COUNTED
def test_positions_from_the_size_alone_are_llama_cpp_s(case: Any, name: str) -> None:
    c = case(name)
    model = model_of(c, "llama.cpp")
    pictures = [np.zeros((height, width, 3), np.uint8) for width, height in SIZES]
    found = [len(image.rows) for image in oracle.Oracle(c.text, c.mmproj, timeout=600).encode(pictures)]
    assert [model.span(*size).n_rows for size in SIZES] == found


def test_a_text_file_without_the_picture_s_token_is_refused(case: Any, tmp_path: Path) -> None:
    c, text = case("one tile"), tmp_path / "text.gguf"
    text.write_bytes(c.text.read_bytes().replace(b"<IMG_CONTEXT>", b"<img_context>"))
    with pytest.raises(ReferenceError, match="has no <IMG_CONTEXT>, the processor's image token"):
        Transformers().run(Case(text, c.mmproj, c.images, c.prompt))
