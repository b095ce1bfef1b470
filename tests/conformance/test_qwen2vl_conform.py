"""`conform` on pairs of Qwen2-VL and Qwen2.5-VL: alike in each reference's profile, else for known reasons; narrow
types; and faults, each found at its stage."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec, QwenVisionSpec, build_qwen2vl
from llava_ref.models import patch_grid
from llava_ref.models.qwen2 import Qwen2VL
from llava_ref.models.qwen2vl import QwenVisionPlan

from .family_conform import KINDS, FamilyConform, check_narrow_type
from .family_stages import Asked
from .qwen2vl_cases import FAMILY as QWEN
from .qwen2vl_cases import PLAIN, WIDE, WORDS
from .reference_cases import compared

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
LARGE_EPS = QwenTextSpec(eps=0.05)
SENT = {
    "Qwen2.5-VL": Asked(f"{WORDS}<image>{WORDS}", text=LARGE_EPS, sizes=(WIDE,)),
    "Qwen2-VL": Asked(f"{WORDS}<image>{WORDS}", text=LARGE_EPS, vision=PLAIN, sizes=(WIDE,)),
}
FAMILY = replace(QWEN, cases=SENT)
MODELS = pytest.mark.parametrize("name", SENT)


class TestConform(FamilyConform):
    pass


@MODELS
def test_the_differences_of_llama_cpp_are_named(case: Any, ran: Any, name: str) -> None:
    """A wide picture is letterboxed; GELU is tanh's; the text's epsilon, 0.05 in this file, is 0."""
    found = compared(case(name), ran(name, "llama.cpp"), profile="hf").findings
    explained = {quirk for finding in found for quirk in finding.explained}
    assert {"fit=letterbox", "text_eps=zero"} <= explained and all(finding.explained for finding in found)


@pytest.mark.parametrize("gated", [True, False])
@KINDS
def test_narrow_types(tmp_path: Path, within: Any, kind: str, gated: bool) -> None:
    text = QwenTextSpec(width=64, n_layer=2, n_head=2, n_head_kv=1, sections=(4, 5, 7, 0), mlp_width=96, kind=kind)
    vision = QwenVisionSpec(gated=gated, width=64, n_head=2, mlp_width=128, n_block=2, kind=kind)
    check_narrow_type(within, "Qwen2-VL", kind, build_qwen2vl(tmp_path, text, vision), 196, 140)


PLANTED: dict[str, tuple[Any, str, Any]] = {
    "vision.blk.0.kq_soft_max": (QwenVisionPlan, "whole", lambda self, layer: True),
    "vision.blk.0.Qcur_rope": (patch_grid, "BASE", 2e4),
    "blk.0.Qcur_rope": (Qwen2VL, "turns", lambda self, positions: positions[:, np.array([0, 2, 2, 1, 1, 1])]),
}


@pytest.mark.parametrize("stage", PLANTED)
def test_a_fault_is_found_at_its_stage(case: Any, ran: Any, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """The faults: no windows; another base of the tower's rope; rows and columns exchanged in the text's."""
    monkeypatch.setattr(*PLANTED[stage])
    found = compared(case("Qwen2.5-VL"), ran("Qwen2.5-VL", "hf"), profile="hf").findings
    assert found[0].stage == stage and not any(finding.explained for finding in found)
