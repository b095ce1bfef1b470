"""`conform` on pairs of Qwen2-VL and Qwen2.5-VL: alike in each reference's profile, else for known reasons; and narrow
types."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.llama_cpp.oracle import DEFAULTS
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec, QwenVisionSpec, build_qwen2vl
from llava_ref.generation.units import PictureRows
from llava_ref.models import patch_grid
from llava_ref.models.qwen2 import Qwen2VL
from llava_ref.models.qwen2vl import QwenVisionPlan
from llava_ref.tracing.distance import rel_rms

from .family_stages import Asked
from .qwen2vl_cases import FAMILY as QWEN
from .qwen2vl_cases import PLAIN, WIDE, WORDS
from .reference_cases import compared

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
GGML = {"kv_cache": "f32", "flash_attention": "off"}
LARGE_EPS = QwenTextSpec(eps=0.05)
SENT = {
    "Qwen2.5-VL": Asked(f"{WORDS}<image>{WORDS}", text=LARGE_EPS, sizes=(WIDE,)),
    "Qwen2-VL": Asked(f"{WORDS}<image>{WORDS}", text=LARGE_EPS, vision=PLAIN, sizes=(WIDE,)),
}
FAMILY = replace(QWEN, cases=SENT)
TOWER = {"Qwen2.5-VL": 15, "Qwen2-VL": 14}  # stages of a block without attention weights
MODELS = pytest.mark.parametrize("name", SENT)


@pytest.fixture(scope="module")
def ran(case: Any) -> Any:
    engines = {"transformers": Transformers(), "llama.cpp": LlamaCpp()}
    return cache(lambda name, engine: engines[engine].run(case(name), n_greedy=4))


@MODELS
@pytest.mark.parametrize("reference, profile", [("transformers", "hf"), ("llama.cpp", "llama.cpp")])
def test_in_its_profile_every_stage_agrees(case: Any, ran: Any, name: str, reference: str, profile: str) -> None:
    report = compared(case(name), ran(name, reference), profile=profile)
    assert report.same and not report.findings
    assert len(report.stages) == 3 + 1 + 3 * TOWER[name] + 4 + 1 + 1 + 3 * 15 + 2


@MODELS
def test_the_differences_of_llama_cpp_are_named(case: Any, ran: Any, name: str) -> None:
    """A wide picture is letterboxed; GELU is tanh's; the text's epsilon, 0.05 in this file, is 0."""
    found = compared(case(name), ran(name, "llama.cpp"), profile="hf").findings
    explained = {quirk for finding in found for quirk in finding.explained}
    assert {"fit=letterbox", "text_eps=zero"} <= explained and all(finding.explained for finding in found)


@MODELS
def test_precision_ggml_computes_each_stage_as_llama_cpp_does_from_the_same_inputs(
    case: Any, ran: Any, within: Any, name: str
) -> None:
    report = compared(case(name), ran(name, "llama.cpp"), GGML, profile="llama.cpp", precision="ggml")
    assert report.same
    for stage in report.stages:
        if stage.own and stage.kind in ("matmul", "table"):
            within(f"{name}, conform, precision ggml, one {stage.kind}", stage.own.rel_rms, 2e-6)


@MODELS
def test_with_its_defaults_llama_cpp_agrees_with_precision_ggml(case: Any, within: Any, name: str) -> None:
    """A cache of float16 and flash attention, with windows in Qwen2.5-VL's tower."""
    run = LlamaCpp(DEFAULTS).run(case(name), n_greedy=4)
    report = compared(case(name), run, profile="llama.cpp", precision="ggml")
    assert report.same
    for stage in report.stages:
        if stage.own and stage.bound.measure == "rel_rms":
            within(f"{name}, conform, precision ggml, llama.cpp's defaults", stage.own.rel_rms, 2e-6)


NARROW = {"F16": (2e-3, 5e-3), "BF16": (2e-2, 2e-2), "Q8_0": (5e-2, 6e-2), "Q4_0": (5e-2, 6e-2)}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("kind", NARROW)
def test_narrow_types(tmp_path: Path, within: Any, kind: str, gated: bool) -> None:
    """A smoke test in exact arithmetic, because llama.cpp rounds activations to the weights' type."""
    text = QwenTextSpec(width=64, n_layer=2, n_head=2, n_head_kv=1, sections=(4, 5, 7, 0), mlp_width=96, kind=kind)
    vision = QwenVisionSpec(gated=gated, width=64, n_head=2, mlp_width=128, n_block=2, kind=kind)
    pair, (rows, logits) = build_qwen2vl(tmp_path, text, vision), NARROW[kind]
    rgb = np.random.default_rng(0).integers(0, 256, (140, 196, 3), np.uint8)
    llama = oracle.Oracle(pair.text, pair.mmproj)
    (image,) = llama.encode([rgb])
    (answer,) = llama.logits([[[300, 301], image.rows.reshape(5, 7, 64), list(range(310, 330))]])
    ours = llava_ref.load(pair.text, pair.mmproj, profile="llama.cpp")
    within(f"Qwen2-VL, {kind}, image rows", rel_rms(ours.encode_image(Image.fromarray(rgb)), image.rows), rows)
    prompt = [[300, 301], PictureRows(image.rows, (5, 7)), list(range(310, 330))]
    within(f"Qwen2-VL, {kind}, logits", rel_rms(ours.forward(prompt), answer.logits), logits)


PLANTED: dict[str, tuple[Any, str, Any]] = {
    "vision.blk.0.kqv_out": (QwenVisionPlan, "whole", lambda self, layer: True),
    "vision.blk.0.Qcur_rope": (patch_grid, "BASE", 2e4),
    "blk.0.Qcur_rope": (Qwen2VL, "turns", lambda self, positions: positions[:, np.array([0, 2, 2, 1, 1, 1])]),
}


@pytest.mark.parametrize("stage", PLANTED)
def test_a_fault_is_found_at_its_stage(case: Any, ran: Any, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """The faults: no windows; another base of the tower's rope; rows and columns exchanged in the text's."""
    monkeypatch.setattr(*PLANTED[stage])
    found = compared(case("Qwen2.5-VL"), ran("Qwen2.5-VL", "transformers"), profile="hf").findings
    assert found[0].stage == stage and not any(finding.explained for finding in found)
