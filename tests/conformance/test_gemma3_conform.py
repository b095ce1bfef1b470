"""`conform` on a pair of Gemma 3: alike in each reference's profile, else for known reasons; and narrow types."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llava_ref
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.models import gemma3, siglip
from llava_ref.tracing.distance import rel_rms

from .family_conform import GGML, KINDS, ONE_OPERATION, FamilyConform, check_narrow_type
from .family_stages import Asked, Family
from .reference_cases import compared

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
TEXT, PROMPT, WIDE = Gemma3Spec(rope_factor=8.0), "what is <image> the color of a", (131, 50)
CASES = {
    "heads of 16": Asked(PROMPT, (WIDE,)),
    "heads of 10": Asked(PROMPT, (WIDE,), text=replace(TEXT, head_size=10)),
}
FAMILY = Family("Gemma 3", build_gemma3, CASES, TEXT, SiglipSpec())


class TestConform(FamilyConform):
    pass


def test_the_differences_of_the_original_are_named(case: Any, ran: Any) -> None:
    pixels, tokens = compared(case("heads of 16"), ran("heads of 16", "llama.cpp"), profile="llava").findings
    assert (pixels.stage, pixels.explained) == ("vision.pixels", ("fit=letterbox",))
    assert (tokens.stage, tokens.explained) == ("token_ids", ("image_newlines=none",))


@pytest.mark.parametrize(
    "fault, stage",
    [("pool", "projector.pool"), ("mlp", "blk.0.ffn_geglu"), ("period", "blk.0.Qcur_rope")],
)
def test_a_fault_is_found_at_its_stage(
    case: Any, ran: Any, monkeypatch: pytest.MonkeyPatch, fault: str, stage: str
) -> None:
    """The faults: an average that is a sum; a gate without its activation; every layer full."""
    sound = siglip.pool
    if fault == "pool":
        monkeypatch.setattr(siglip, "pool", lambda x, n, m: sound(x, n, m) * m**2)
    elif fault == "mlp":
        from llava_ref.ops.numpy_ops import NumpyOps

        monkeypatch.setattr(NumpyOps, "activation", lambda self, x, kind: x)
    else:
        monkeypatch.setattr(gemma3.Gemma3Config, "local", lambda self, layer: False)
    found = compared(case("heads of 16"), ran("heads of 16", "hf"), profile="hf").findings
    assert stage in [finding.stage for finding in found] and not any(finding.explained for finding in found)


@KINDS
def test_narrow_types(tmp_path: Path, within: Any, kind: str) -> None:
    """In precision ggml the best of some short prompts meets no rounding that goes the other way."""
    text = Gemma3Spec(width=64, n_layer=2, n_head=2, n_head_kv=1, head_size=32, mlp_width=96, pattern=2, kind=kind)
    pair = build_gemma3(tmp_path, text, SiglipSpec(width=64, n_head=2, mlp_width=96, n_block=2, kind=kind))
    check_narrow_type(within, "Gemma 3", kind, pair, 45, 61)
    llama, prompts = oracle.Oracle(pair.text, pair.mmproj), [[[2, 310 + i]] for i in range(12)]
    ggml = llava_ref.load(pair.text, pair.mmproj, profile="llama.cpp", precision="ggml", quirks=GGML)
    errors = [rel_rms(ggml.forward(p), a.logits) for p, a in zip(prompts, llama.logits(prompts), strict=True)]
    within(f"Gemma 3, {kind}, precision ggml, the best of {len(prompts)} prompts", min(errors), ONE_OPERATION)
