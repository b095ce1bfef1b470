"""`conform` on pairs of Pixtral and Mistral Small 3.1: alike in each reference's profile, else for known reasons;
narrow types; and faults, each found at its stage."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.pairs.pairs import TextSpec
from llava_ref.conformance.pairs.pixtral import PixtralSpec, build_pixtral
from llava_ref.images import free_size
from llava_ref.images.free_size import LongestEdge
from llava_ref.images.resample import BILINEAR
from llava_ref.models import patch_grid, pixtral
from llava_ref.models.family import Span
from llava_ref.tracing.distance import rel_rms

from .family_conform import KINDS, FamilyConform, check_narrow_type
from .family_stages import BOUND, Asked
from .pixtral_cases import FAMILY as PIXTRAL
from .pixtral_cases import SMALL, WIDE, WORDS
from .reference_cases import compared, differing, model_of, trace

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
SENT = {
    "Pixtral": Asked(f"{WORDS}<image>{WORDS}", (WIDE,)),
    "Mistral Small 3.1": Asked(f"{WORDS}<image>{WORDS}", (WIDE,), vision=SMALL),
}
FAMILY = replace(PIXTRAL, cases=SENT)
MODELS = pytest.mark.parametrize("name", SENT)


class TestConform(FamilyConform):
    pass


def test_a_tower_with_gelu_agrees_with_llama_cpp(tmp_path: Path) -> None:
    """ggml reads GELU from a table of float16, and bounds know it."""
    c = FAMILY.write(tmp_path, Asked("is<image>", (WIDE,), vision=PixtralSpec(use_gelu=True)))
    report = compared(c, LlamaCpp().run(c), profile="llama.cpp")
    assert report.same and not report.findings


@MODELS
@pytest.mark.parametrize("reference, profile, other", [
    ("llama.cpp", "hf", {"fit=letterbox", "picture_size=mtmd", "line_breaks=rows"}),
    ("hf", "llama.cpp", {"fit=stretch", "picture_size=processor", "line_breaks=tokens", "gelu=erf"}),
])  # fmt: skip
def test_the_differences_are_named(
    case: Any, ran: Any, name: str, reference: str, profile: str, other: set[str]
) -> None:
    """A wide picture has another size in each; that it has shows in every stage."""
    found = compared(case(name), ran(name, reference), profile=profile).findings
    assert found and all(finding.explained for finding in found)
    explained = {quirk for finding in found for text in finding.explained for quirk in text.split(" --quirk ")}
    assert explained == other


@MODELS
def test_breaks_alone_are_named(case: Any, ran: Any, name: str) -> None:
    """Of a picture that both see as it is."""
    c, side = case(name), 16 if name == "Pixtral" else 28
    path = c.images[0].with_name("whole.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (3 * side, 3 * side, 3), np.uint8)).save(path)
    sent = replace(c, images=(path,))
    (finding,) = compared(sent, LlamaCpp().run(sent), profile="hf").findings
    assert finding.stage == "token_ids" and finding.explained == ("line_breaks=rows",)


@pytest.mark.parametrize("merge", [None, 2])
@KINDS
def test_narrow_types(tmp_path: Path, within: Any, kind: str, merge: int | None) -> None:
    text = TextSpec(width=64, n_layer=2, n_head=2, n_head_kv=1, mlp_width=96, kind=kind)
    vision = PixtralSpec(width=64, n_head=2, mlp_width=128, n_block=2, middle=64, patch_size=14, merge=merge, kind=kind)
    check_narrow_type(within, "Pixtral", kind, build_pixtral(tmp_path, text, vision), 84, 112)


Patch = pytest.MonkeyPatch
SOUND_SPAN, SOUND_PLACED, SOUND_SIZE = pixtral.Pixtral.span, pixtral.placed, LongestEdge.of


def set_to(target: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(target, name, value)


def rope(change: Callable[[np.ndarray], np.ndarray] = lambda x: x, apart: float = 0.5, pairs: Any = "adjacent") -> Any:
    """Plant another way to turn patches: `change` of their rows and columns."""
    return set_to(
        pixtral, "placed", lambda places, size, _, ops, apart=0.0, by=apart: SOUND_PLACED(
            change(places), size, pairs, ops, by)
    )  # fmt: skip


def weights(change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    sound = pixtral.load
    return lambda patch: patch.setattr(pixtral, "load", lambda *given: change(sound(*given)))


def columns_first(x: Any, grid: Any, s: int) -> Any:
    return pixtral.squares_first(x, *grid, s)


def without_the_last_break(self: Any, width: int, height: int) -> Span:
    span = SOUND_SPAN(self, width, height)
    return Span(span.grid, span.stretches[:-1])


def a_break_behind_every_line(self: Any, width: int, height: int) -> Span:
    span = SOUND_SPAN(self, width, height)
    return Span(span.grid, (*span.stretches[:-1], pixtral.BREAK + pixtral.END))


def rounded_to_the_nearest(self: Any, width: int, height: int) -> tuple[int, int]:
    across, down = SOUND_SIZE(self, width, height)
    return max(self.square, across - self.square), down


FAULTS: dict[str, tuple[str, str, Callable[[Patch], None]]] = {
    "bilinear for bicubic": ("Pixtral", "image.seen", set_to(free_size, "BICUBIC", BILINEAR)),
    "a square less across": ("Pixtral", "image.seen", set_to(LongestEdge, "of", rounded_to_the_nearest)),
    "no norm in front of the blocks": (
        "Pixtral", "vision.pre_ln", weights(lambda w: replace(w, pre_ln=0 * w.pre_ln + 1))),
    "columns turn by the rows' angles": ("Pixtral", "vision.blk.0.Qcur_rope", rope(apart=0.0)),
    "rows and columns exchanged": ("Pixtral", "vision.blk.0.Qcur_rope", rope(lambda x: x[:, ::-1])),
    "halves of a head for adjacent pairs": ("Pixtral", "vision.blk.0.Qcur_rope", rope(pairs="halves")),
    "places count from 1": ("Pixtral", "vision.blk.0.Qcur_rope", rope(lambda x: x + 1)),
    "the tower's rope 1 % off": ("Pixtral", "vision.blk.0.Qcur_rope", set_to(patch_grid, "BASE", 1.01e4)),
    "no norm before the merger": ("Mistral Small 3.1", "projector.input_norm", weights(
        lambda w: replace(w, merger=replace(w.merger, norm=0 * w.merger.norm + 1)))),
    "patches of a square one after the other": (
        "Mistral Small 3.1", "projector.shuffle", set_to(pixtral, "channels_first", columns_first)),
    "no token behind the last line": ("Pixtral", "embd", set_to(pixtral.Pixtral, "span", without_the_last_break)),
    "a break behind every line": ("Pixtral", "embd", set_to(pixtral.Pixtral, "span", a_break_behind_every_line)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_at_its_stage(case: Any, ran: Any, monkeypatch: Patch, fault: str) -> None:
    name, stage, plant = FAULTS[fault]
    plant(monkeypatch)
    bad = differing(trace(model_of(case(name), "hf"), case(name)), ran(name, "hf").stages, BOUND)
    assert bad and bad[0] == stage


@MODELS
def test_sound_models_are_within_the_bound(case: Any, ran: Any, name: str) -> None:
    assert not differing(trace(model_of(case(name), "hf"), case(name)), ran(name, "hf").stages, BOUND)


@MODELS
def test_the_other_gelu_is_seen(case: Any, ran: Any, name: str) -> None:
    """It lies below llama.cpp's own rounding, so that only transformers shows it."""
    ours = trace(model_of(case(name), "hf", gelu="tanh"), case(name))
    theirs = ran(name, "hf").stages
    assert differing(ours, theirs, BOUND)[0] == "projector.gelu"
    assert 3e-5 < rel_rms(ours["projector.out"], theirs["projector.out"]) < 2e-3


def test_breaks_at_another_place_are_seen(case: Any, ran: Any, monkeypatch: Patch) -> None:
    """In profile llama.cpp, where they are rows: one place too early in every line."""
    sound = np.pad
    monkeypatch.setattr(pixtral.np, "pad", lambda x, width, **options: np.roll(sound(x, width, **options), 1, axis=1))
    run = ran("Pixtral", "llama.cpp")
    bad = differing(trace(model_of(case("Pixtral"), "llama.cpp"), case("Pixtral")), run.stages, 2e-3)
    assert bad[0] == "embd"
