"""`conform` on a pair of Gemma 3: alike in each reference's profile, else for known reasons; and narrow types."""

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
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.models import gemma3, siglip
from llava_ref.tracing.distance import rel_rms

from .reference_cases import compared

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
GGML = {"kv_cache": "f32", "flash_attention": "off"}
N_STAGES = 3 + 2 + 3 * 12 + 4 + 1 + 7 * 19 + 2  # without attention weights


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("pair")
    pair = build_gemma3(folder, Gemma3Spec(rope_factor=8.0), SiglipSpec())
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 131, 3), np.uint8)).save(folder / "wide.png")
    return Case(pair.text, pair.mmproj, (folder / "wide.png",), "what is <image> the color of a")


@pytest.fixture(scope="module")
def ran(case: Case) -> Any:
    engines = {"transformers": Transformers(), "llama.cpp": LlamaCpp()}
    return cache(lambda name: engines[name].run(case, n_greedy=4))


@pytest.mark.parametrize("reference, profile", [("transformers", "hf"), ("llama.cpp", "llama.cpp")])
def test_in_its_profile_every_stage_agrees(case: Case, ran: Any, reference: str, profile: str) -> None:
    report = compared(case, ran(reference), profile=profile)
    assert report.same and not report.findings and len(report.stages) == N_STAGES + 1  # and the token ids


def test_precision_ggml_computes_each_stage_as_llama_cpp_does_from_the_same_inputs(
    case: Case, ran: Any, within: Any
) -> None:
    report = compared(case, ran("llama.cpp"), GGML, profile="llama.cpp", precision="ggml")
    assert report.same
    tables = [stage for stage in report.stages if stage.kind == "table"]
    assert len(tables) == 10
    for stage in report.stages:
        if stage.own and stage.kind in ("matmul", "table"):
            within(f"Gemma 3, conform, precision ggml, one {stage.kind}", stage.own.rel_rms, 2e-6)


@pytest.mark.parametrize("head_size", [16, 10])
def test_with_its_defaults_llama_cpp_agrees_with_precision_ggml(
    tmp_path: Path, case: Case, within: Any, head_size: int
) -> None:
    """A cache of float16 and flash attention, with masks of windows and of whole pictures."""
    pair = build_gemma3(tmp_path, Gemma3Spec(rope_factor=8.0, head_size=head_size), SiglipSpec())
    case = replace(case, text=pair.text, mmproj=pair.mmproj)
    report = compared(case, LlamaCpp(DEFAULTS).run(case, n_greedy=4), profile="llama.cpp", precision="ggml")
    assert report.same
    for stage in report.stages:
        if stage.own and stage.bound.measure == "rel_rms":
            within("Gemma 3, conform, precision ggml, llama.cpp's defaults", stage.own.rel_rms, 2e-6)


def test_the_differences_of_the_original_are_named(case: Case, ran: Any) -> None:
    pixels, tokens = compared(case, ran("llama.cpp"), profile="llava").findings
    assert (pixels.stage, pixels.explained) == ("vision.pixels", ("fit=letterbox",))
    assert (tokens.stage, tokens.explained) == ("token_ids", ("image_newlines=none",))


@pytest.mark.parametrize(
    "fault, stage",
    [("pool", "projector.pool"), ("mlp", "blk.0.ffn_geglu"), ("period", "blk.0.Qcur_rope")],
)
def test_a_fault_is_found_at_its_stage(
    case: Case, ran: Any, monkeypatch: pytest.MonkeyPatch, fault: str, stage: str
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
    found = compared(case, ran("transformers"), profile="hf").findings
    assert stage in [finding.stage for finding in found] and not any(finding.explained for finding in found)


NARROW = {"F16": (2e-3, 5e-3), "BF16": (2e-2, 2e-2), "Q8_0": (5e-2, 6e-2), "Q4_0": (5e-2, 6e-2)}


@pytest.mark.parametrize("kind", NARROW)
def test_narrow_types(tmp_path: Path, within: Any, kind: str) -> None:
    """A smoke test in exact arithmetic, because llama.cpp rounds activations to the weights' type. In precision ggml
    the best of some short prompts meets no rounding that goes the other way."""
    text = Gemma3Spec(width=64, n_layer=2, n_head=2, n_head_kv=1, head_size=32, mlp_width=96, pattern=2, kind=kind)
    pair = build_gemma3(tmp_path, text, SiglipSpec(width=64, n_head=2, mlp_width=96, n_block=2, kind=kind))
    llama, rows, logits = oracle.Oracle(pair.text, pair.mmproj), *NARROW[kind]
    (image,) = llama.encode([np.random.default_rng(0).integers(0, 256, (61, 45, 3), np.uint8)])
    prompts: list[list[Any]] = [[[2, 300, 301], image.rows, list(range(310, 330))]]
    prompts += [[image.rows, [302 + i]] for i in range(6)] + [[[2, 310 + i]] for i in range(6)]
    answers = llama.logits(prompts)
    exact, ggml = (
        llava_ref.load(pair.text, pair.mmproj, profile="llama.cpp", precision=precision, quirks=GGML)
        for precision in ("exact", "ggml")
    )
    within(f"Gemma 3, {kind}, image rows", rel_rms(exact.encode(image.pixels[None]), image.rows), rows)
    within(f"Gemma 3, {kind}, logits", rel_rms(exact.forward(prompts[0]), answers[0].logits), logits)
    errors = [rel_rms(ggml.forward(p), answer.logits) for p, answer in zip(prompts, answers, strict=True)]
    within(f"Gemma 3, {kind}, precision ggml, the best of {len(prompts)} prompts", min(errors), 2e-6)
