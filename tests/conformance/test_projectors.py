"""The projectors of Yi-VL (a norm behind each matrix) and MobileVLM V2 (averages, and their neighbours) against
llama.cpp: transformers has no class for either."""

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
from llava_ref.models import projectors
from llava_ref.tracing.distance import kl, rel_rms

from .reference_cases import EVERYTHING, OF_PICTURES, differing, trace, worst

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
SPECS = {
    "class token, tiles": VisionSpec(norms=True, image_size=28, patch_size=7, sizes=((28, 56), (56, 28))),
    "large eps, GELU in the tower, post_ln": VisionSpec(norms=True, eps=0.05, use_gelu=True, post_ln=True),
    "MobileVLM V2": VisionSpec(peg=True, image_size=48, patch_size=2),  # llama.cpp knows 24 patches a side only
    "MobileVLM V2, tiles": VisionSpec(peg=True, image_size=24, patch_size=1, sizes=((24, 48),), feature_layer=2),
    "no class token, a feature layer": VisionSpec(norms=True, class_token=False, feature_layer=2, swapped=True),
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
    own = ("projector.mm_2", "projector.pool#1") if SPECS[name].peg else ("projector.mm_1", "projector.mm_3#1")
    assert not differing(ours, pictures, 2e-3) and set(own) <= set(pictures)
    logits = ours["result_output"], run.stages["result_output"]
    within(f"Yi-VL, MobileVLM V2, llama.cpp EXACT, image rows, {backend}", worst(ours, pictures), 2e-3)
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


def test_a_neighbour_on_the_wrong_side_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(tmp_path, SPECS["MobileVLM V2"])
    run, sound = LlamaCpp().run(case), projectors.neighbours
    assert conform(lambda changed: model_of(case, quirks=changed), case, run).same
    monkeypatch.setattr(projectors, "neighbours", lambda n: sound(n)[::-1])
    found = conform(lambda changed: model_of(case, quirks=changed), case, run).findings
    assert "projector.out" in [finding.stage for finding in found]


def test_an_odd_number_of_patches_cannot_be_averaged(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="patch_size: 5 patches a side, expected an even number"):
        model_of(case_of(tmp_path, VisionSpec(peg=True, image_size=25, patch_size=5)))


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
