"""The projectors of Yi-VL (a norm behind each matrix), MobileVLM (blocks of MobileNetV3) and MobileVLM V2 (averages,
and their neighbours) against llama.cpp: transformers has no class for any."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.cli import main
from llava_ref.conformance.compare.conform import conform
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.errors import GGUFError
from llava_ref.models import mobilevlm, projectors
from llava_ref.tracing.distance import kl, rel_rms

from .reference_cases import EVERYTHING, OF_PICTURES, differing, trace, worst

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
SPECS = {
    "class token, tiles": VisionSpec(norms=True, image_size=28, patch_size=7, sizes=((28, 56), (56, 28))),
    "large eps, GELU in the tower, post_ln": VisionSpec(norms=True, eps=0.05, use_gelu=True, post_ln=True),
    "MobileVLM": VisionSpec(mobile="ldp", image_size=48, patch_size=2),  # llama.cpp knows 24 patches a side only
    "MobileVLM, large eps, tiles": VisionSpec(mobile="ldp", image_size=24, patch_size=1, eps=0.05, sizes=((24, 48),)),
    "MobileVLM V2": VisionSpec(mobile="ldpv2", image_size=48, patch_size=2),
    "MobileVLM V2, tiles": VisionSpec(mobile="ldpv2", image_size=24, patch_size=1, sizes=((24, 48),), feature_layer=2),
    "no class token, a feature layer": VisionSpec(norms=True, class_token=False, feature_layer=2, swapped=True),
}
OWN = {
    None: {"projector.mm_1", "projector.mm_3#1"},
    "ldp": {"projector.mb_1.norm", "projector.mb_1.out#1", "projector.mb_2.excite", "projector.mb_2.point#1"},
    "ldpv2": {"projector.mm_2", "projector.pool#1"},
}


def case_of(folder: Path, vision: VisionSpec) -> Case:
    pair = build(folder, TextSpec(context=1024), vision)
    rng, images = np.random.default_rng(5), (folder / "wide.png", folder / "tall.png")
    for path, shape in zip(images, ((40, 90, 3), (71, 30, 3)), strict=True):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return Case(pair.text, pair.mmproj, images, "what<image>is the color<image>\nred")


def model_of(case: Case, backend: str = "numpy", **settings: Any) -> llava_ref.Llava:
    return llava_ref.load(case.text, case.mmproj, backend=backend, **{"profile": "llama.cpp", **settings})


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", SPECS)
def test_every_stage_of_llama_cpp(tmp_path: Path, within: Any, name: str, backend: str) -> None:
    case = case_of(tmp_path, SPECS[name])
    run, model = LlamaCpp(stages=EVERYTHING).run(case, n_greedy=6), model_of(case, backend)
    ours, request = trace(model, case), model.raw_request(case.prompt, case.images)
    assert tuple(request.token_ids) == run.token_ids
    assert set(run.stages) == {stage for stage in ours if not stage.startswith("image.seen")}
    pictures = {stage: array for stage, array in run.stages.items() if stage.startswith(OF_PICTURES)}
    own = OWN[SPECS[name].mobile]
    assert not differing(ours, pictures, 2e-3) and own <= set(pictures)
    logits = ours["result_output"], run.stages["result_output"]
    within(f"Yi-VL, MobileVLM, llama.cpp EXACT, image rows, {backend}", worst(ours, pictures), 2e-3)
    within(f"Yi-VL, llama.cpp EXACT, end to end, logits, {backend}", rel_rms(*logits), 5e-3)
    within(f"Yi-VL, llama.cpp EXACT, end to end, KL, {backend}", kl(*logits).max(), 5e-4)
    with model.trace("result_output"):
        assert int(model.request_logits(request)[-1].argmax()) == run.greedy[0]


def test_conform_agrees_and_finds_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: the gain of the second norm is 1 % too large."""
    case = case_of(tmp_path, replace(VisionSpec(norms=True), n_block=3))
    run = LlamaCpp().run(case)

    def compared() -> Any:
        return conform(lambda changed: model_of(case, quirks=changed), case, run)

    assert compared().same
    sound = projectors.mlp

    def faulty(x: Any, w: Any, gelu: Any, eps: float, ops: Any, tap: Any) -> Any:
        w = replace(w, norms=(w.norms[0], replace(w.norms[1], weight=w.norms[1].weight * 1.01)))
        return sound(x, w, gelu, eps, ops, tap)

    monkeypatch.setattr(projectors, "mlp", faulty)
    assert "projector.out" in [finding.stage for finding in compared().findings]


def wrong_side(patch: pytest.MonkeyPatch) -> None:
    sound = mobilevlm.neighbours
    patch.setattr(mobilevlm, "neighbours", lambda *given: sound(*given)[::-1])


def other_half_of_the_places(patch: pytest.MonkeyPatch) -> None:
    """The second block keeps odd rows and columns."""
    sound = mobilevlm.neighbours
    patch.setattr(mobilevlm, "neighbours", lambda n, stride=1: np.roll(sound(n, stride), 4 if stride > 1 else 0, 0))


def soft_gate(patch: pytest.MonkeyPatch) -> None:
    """A sigmoid in the place of its approximation by three lines."""
    patch.setattr(mobilevlm, "hard_sigmoid", lambda x, ops: 1 / (1 + np.exp(-x)))


def no_residual(patch: pytest.MonkeyPatch) -> None:
    sound = mobilevlm.mobile
    patch.setattr(mobilevlm, "mobile", lambda x, *rest: sound(x, *rest) - (x if rest[3] == 1 else 0))


FAULTS = {
    "wrong side, V2": ("MobileVLM V2", wrong_side, "projector.out"),
    "wrong side": ("MobileVLM", wrong_side, "projector.mb_1.norm"),
    "other half": ("MobileVLM", other_half_of_the_places, "projector.mb_2.norm"),
    "sigmoid": ("MobileVLM", soft_gate, "projector.mb_1.excite"),
    "no residual": ("MobileVLM", no_residual, "projector.mb_1.out"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_at_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    name, plant, stage = FAULTS[fault]
    case = case_of(tmp_path, SPECS[name])
    run = LlamaCpp().run(case)
    assert conform(lambda changed: model_of(case, quirks=changed), case, run).same
    plant(monkeypatch)
    found = conform(lambda changed: model_of(case, quirks=changed), case, run).findings
    assert found[0].stage == stage


@pytest.mark.parametrize("name", ["MobileVLM", "MobileVLM V2"])
def test_precision_ggml_convolves_as_llama_cpp_does(tmp_path: Path, within: Any, name: str) -> None:
    case = case_of(tmp_path, SPECS[name])
    quirks = {"kv_cache": "f32", "flash_attention": "off"}
    run = LlamaCpp().run(case)
    report = conform(lambda changed: model_of(case, precision="ggml", quirks=quirks | dict(changed)), case, run)
    assert report.same
    own = [stage.own.rel_rms for stage in report.stages if stage.own and stage.name.startswith("projector.")]
    within(f"{name}, precision ggml, one stage of the projector", max(own), 2e-6)


@pytest.mark.parametrize("mobile", ["ldp", "ldpv2"])
def test_an_odd_number_of_patches_cannot_be_halved(tmp_path: Path, mobile: Any) -> None:
    with pytest.raises(GGUFError, match="patch_size: 5 patches a side, expected an even number"):
        model_of(case_of(tmp_path, VisionSpec(mobile=mobile, image_size=25, patch_size=5)))


def test_a_norm_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = case_of(tmp_path, SPECS["class token, tiles"])
    assert main(["check", "-m", str(case.text), "--mmproj", str(case.mmproj)]) == 0
    assert "mm.3.weight [48, 56]: rows of 48" in capsys.readouterr().out
    data = bytearray(case.mmproj.read_bytes())
    at = data.index(b"mm.4.weight")
    data[at : at + 4] = b"mm.5"
    case.mmproj.write_bytes(data)
    with pytest.raises(GGUFError, match="mm.4.weight: missing tensor"):
        model_of(case)
