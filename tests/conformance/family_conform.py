"""What `conform` says of every family: a pair agrees in each reference's profile, and in precision ggml; narrow types.

A family's test file names its pair and its cases in `FAMILY`, as for family_stages.py, and inherits the tests.
"""

from typing import Any

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.llama_cpp.oracle import DEFAULTS
from llava_ref.conformance.pairs.pairs import Pair
from llava_ref.generation.units import PictureRows
from llava_ref.tracing.distance import rel_rms

from .family_stages import Cases, Family
from .reference_cases import compared

GGML = {"kv_cache": "f32", "flash_attention": "off"}
ONE_OPERATION = 2e-6
NARROW = {"F16": (2e-3, 5e-3), "BF16": (2e-2, 2e-2), "Q8_0": (5e-2, 6e-2), "Q4_0": (5e-2, 6e-2)}  # rows, logits
KINDS = pytest.mark.parametrize("kind", NARROW)


class FamilyConform(Cases):
    """Every case of the module's `FAMILY`."""

    @pytest.mark.parametrize("profile", ["hf", "llama.cpp"])
    def test_in_its_profile_every_stage_agrees(self, case: Any, ran: Any, name: str, profile: str) -> None:
        run = ran(name, profile)
        report = compared(case(name), run, profile=profile)
        assert report.same and not report.findings
        assert {"token_ids", *run.stages} <= {stage.name for stage in report.stages}

    def test_precision_ggml_computes_each_stage_as_llama_cpp_does_from_the_same_inputs(
        self, family: Family, case: Any, ran: Any, within: Any, name: str
    ) -> None:
        report = compared(case(name), ran(name, "llama.cpp"), GGML, profile="llama.cpp", precision="ggml")
        own = [stage for stage in report.stages if stage.own and stage.kind in ("matmul", "table")]
        assert report.same and {stage.kind for stage in own} == {"matmul", "table"}
        for stage in own:
            within(f"{family.name}, conform, precision ggml, one {stage.kind}", stage.own.rel_rms, ONE_OPERATION)

    def test_with_its_defaults_llama_cpp_agrees_with_precision_ggml(
        self, family: Family, case: Any, within: Any, name: str
    ) -> None:
        """A cache of float16 and flash attention; what is left of values that ggml rounds once less."""
        run = LlamaCpp(DEFAULTS).run(case(name), n_greedy=4)
        report = compared(case(name), run, profile="llama.cpp", precision="ggml")
        own = [stage.own.rel_rms for stage in report.stages if stage.own and stage.bound.measure == "rel_rms"]
        assert report.same
        within(f"{family.name}, conform, precision ggml, llama.cpp's defaults", max(own), ONE_OPERATION)


def check_narrow_type(within: Any, family: str, kind: str, pair: Pair, width: int, height: int) -> None:
    """Compare a pair of weights of a narrow type with llama.cpp: a picture's rows, and the logits behind its rows.

    A smoke test in exact arithmetic, because llama.cpp rounds activations to the weights' type."""
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    llama, ours = oracle.Oracle(pair.text, pair.mmproj), llava_ref.load(pair.text, pair.mmproj, profile="llama.cpp")
    (image,) = llama.encode([rgb])
    theirs: Any = image.rows
    mine: Any = image.rows
    if ours.text.GRID_POSITIONS:
        grid = ours.span(width, height).grid
        theirs, mine = theirs.reshape(*grid, -1), PictureRows(mine, grid)
    before, behind = [300, 301], list(range(310, 330))
    (answer,) = llama.logits([[before, theirs, behind]])
    rows, logits = NARROW[kind]
    within(f"{family}, {kind}, image rows", rel_rms(ours.encode_image(Image.fromarray(rgb)), image.rows), rows)
    within(f"{family}, {kind}, logits", rel_rms(ours.forward([before, mine, behind]), answer.logits), logits)
