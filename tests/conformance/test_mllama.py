"""Llama-3.2-Vision against transformers (profile hf), stage by stage, on random pairs. llama.cpp has no such model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llava_ref
from llava_ref.conformance.engines.hf import mllama as their_mllama
from llava_ref.conformance.engines.hf import mllama_prompt
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.pairs.mllama import MllamaTextSpec, MllamaVisionSpec, build_mllama
from llava_ref.models import mllama, mllama_vision
from llava_ref.models.looking import LookingCache
from llava_ref.models.tile_canvas import TileCanvas, TileLayout
from llava_ref.tracing.distance import rel_rms

from .family_stages import BOUND, Asked, Family, TransformersStages, greedy
from .reference_cases import compared, differing, model_of, random_sizes, trace

reason = reference_hf.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
TEXT, TOWER = MllamaTextSpec(), MllamaVisionSpec()
WIDE, TALL, SQUARE, TINY, LARGE = (131, 40), (37, 212), (90, 90), (9, 5), (300, 200)  # width, height
WORDS = "what is the color of a large small red circle, 12 or 345"
TURN = (
    "<|start_header_id|>user<|end_header_id|>\n\n<image>{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
CASES = {
    "a wide one, as the template has it": Asked(TURN.format(WORDS), (WIDE,)),
    "a tall one in the middle, MHA, large eps": Asked(
        f"is<image>{WORDS}", (TALL,), replace(TEXT, n_head_kv=4, eps=0.05), replace(TOWER, eps=0.05, old=True)
    ),
    "a square one last": Asked(f"{WORDS}\n\n<image>", (SQUARE,), replace(TEXT, n_head_kv=1, rope_divisors=True)),
    "side by side, apart, and side by side again": Asked(
        "what<image><image> the color<image>of<image><image><image> red", (TINY, LARGE, TALL, WIDE, SQUARE, TINY)
    ),
    "tiles of 5 x 5 patches, one state, every layer but one looks": Asked(
        f"<image>{WORDS}<image>", (TALL, (40, 41)),
        replace(TEXT, n_layer=4, looks=(1, 2, 3)), replace(TOWER, image_size=45, patch_size=9, taken=(1,), n_global=1),
    ),
    "two tiles at most, no global block": Asked(
        "is<image>the<image>", (WIDE, TALL), replace(TEXT, looks=(4,)),
        replace(TOWER, tiles=2, n_global=0, taken=(0, 1, 2, 3)),
    ),
    "no picture": Asked(WORDS),
    "more than a batch of text before it": Asked(f"{WORDS * 32}<image> red", (SQUARE,), replace(TEXT, context=1024)),
}  # fmt: skip
FAMILY = Family("Mllama", build_mllama, CASES, TEXT, TOWER, looks=True)
SIZES = random_sizes(3000, lambda width, height: True)


class TestStages(TransformersStages):
    def test_profile_llava_means_the_same(self, case: Any, ran: Any, name: str) -> None:
        """Profile llava is Meta's code: with its two quirks put back it means transformers."""
        quirks = {"tower_states": "after", "blind_rows": "see"}
        ours, run = trace(model_of(case(name), "llava", **quirks), case(name)), ran(name, "hf")
        assert set(ours) == set(run.stages) and not differing(ours, run.stages, BOUND)


def test_tiles_from_the_size_alone_are_transformers(case: Any) -> None:
    for name in ("a wide one, as the template has it", "two tiles at most, no global block"):
        model = model_of(case(name), "hf")
        vision = their_mllama.read_settings(llava_ref.gguf.read(case(name).mmproj), model.text.config.width)
        tower: Any = model.tower
        assert [tower.plan.canvas.grid(*size) for size in SIZES] == mllama_prompt.grids(SIZES, vision)
        assert {model.span(*size).n_rows for size in SIZES} == {1}


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (28, 28), (29, 27), (1000, 999), (56, 56), (113, 2)])
def test_pixels_of_a_strip_and_of_whole_tiles_are_transformers(case: Any, size: tuple[int, int]) -> None:
    from PIL import Image

    model = model_of(case("no picture"), "hf")
    rgb = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8)
    vision = their_mllama.read_settings(llava_ref.gguf.read(case("no picture").mmproj), model.text.config.width)
    tiles, seen = mllama_prompt.preprocess([Image.fromarray(rgb)], vision)
    ours = model.tower.preprocess(rgb)
    assert (ours.seen == seen[0]).all()
    for tile, theirs in zip(llava_ref.images.fit.cut((ours.seen, ours.affine), 28), tiles.values[0, 0], strict=False):
        assert (llava_ref.images.fit.normalise(tile[0], vision.mean, vision.std)[0] == theirs).all()


def test_one_file_is_the_same_as_two(case: Any, tmp_path: Path) -> None:
    c = case("a wide one, as the template has it")
    both = build_mllama(tmp_path, TEXT, TOWER, one_file=True).text
    wanted = model_of(c, "hf").logits(c.prompt, c.images)
    for mmproj in (both, None):
        found = llava_ref.load(both, mmproj, backend="numpy", threads=1, profile="hf")
        assert (found.logits(c.prompt, c.images) == wanted).all()


Patch = pytest.MonkeyPatch


def swapped_rows(patch: Patch) -> None:
    """Lay out the patches of a canvas line by line, and not tile by tile."""
    sound = TileLayout.of
    patch.setattr(TileLayout, "of", lambda *given: replace(sound(*given), patches=np.sort(sound(*given).patches)))


def grid_turned(patch: Patch) -> None:
    sound = TileLayout.of
    patch.setattr(TileLayout, "of", lambda rows, columns, n, canvas: replace(
        sound(rows, columns, n, canvas), grid=canvas.grids().index((columns, rows)) + 1))  # fmt: skip


def padding_hidden(patch: Patch) -> None:
    """Let no row see the padding."""

    def sees(self: Any) -> Any:
        n = len(self.tile)
        return replace(sound(self), within=np.stack([np.zeros(n, int), np.full(n, self.n_seen)], 1))

    sound = TileLayout.sees
    patch.setattr(TileLayout, "sees", sees)


def states_side_by_side(patch: Patch) -> None:
    def joined(x: Any, states: Any, n: int, ops: Any) -> Any:
        return np.concatenate([part[:n] for part in (x, *states)], 1)

    patch.setattr(mllama_vision, "interleaved", joined)


def one_picture_at_a_time(patch: Patch) -> None:
    sound = LookingCache.ranges

    def ranges(self: Any, rows: np.ndarray) -> np.ndarray:
        found = sound(self, rows)
        for picture in self.pictures:
            found[rows >= picture.at] = picture.first, picture.end
        return found

    patch.setattr(LookingCache, "ranges", ranges)


def without(name: str) -> Callable[[Patch], None]:
    """Leave a part of the layers that look at pictures out."""
    sound = mllama._load_look

    def load(w: Any, block: str, c: Any, ops: Any) -> Any:
        found = sound(w, block, c, ops)
        neutral = getattr(found, name) * 0 + 1
        return replace(found, **{name: neutral})

    return lambda patch: patch.setattr(mllama, "_load_look", load)


FAULTS: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "patches line by line": ("vision.patch_embd", swapped_rows),
    "rows and columns of the grid changed": ("vision.pre_tile_embd", grid_turned),
    "padding not seen": ("vision.blk.0.kq_soft_max", padding_hidden),
    "states one after the other": ("vision.features", states_side_by_side),
    "pictures side by side seen one at a time": ("blk.1.kq_soft_max", one_picture_at_a_time),
    "keys not normalised": ("blk.1.Kcur_normed", without("k_norm")),
    "queries not normalised": ("blk.1.Qcur_normed", without("q_norm")),
    "attention without its gate": ("blk.1.ffn_inp", without("attn_gate")),
    "the MLP without its gate": ("blk.1.out", without("mlp_gate")),
    "the larger of two canvases": ("image.seen", lambda patch: patch.setattr(
        TileCanvas, "grid", lambda self, width, height: (2, 2))),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_at_its_stage(case: Any, ran: Any, monkeypatch: Patch, fault: str) -> None:
    name = "side by side, apart, and side by side again"
    stage, plant = FAULTS[fault]
    plant(monkeypatch)
    bad = differing(trace(model_of(case(name), "hf"), case(name)), ran(name, "hf").stages, BOUND)
    assert bad and next(iter(bad)).partition("#")[0] == stage


def test_conform_in_its_profile_every_stage_agrees(case: Any, ran: Any) -> None:
    name = "side by side, apart, and side by side again"
    report = compared(case(name), ran(name, "hf"), profile="hf")
    assert report.same and not report.findings


def test_conform_names_what_transformers_does_otherwise_than_meta(case: Any, ran: Any) -> None:
    name = "side by side, apart, and side by side again"
    report = compared(case(name), ran(name, "hf"), profile="llava")
    found = {finding.stage: finding.explained for finding in report.findings if finding.explained}
    assert found["vision.features"] == ("tower_states=after",)
    assert ("blind_rows=see",) in found.values()


def test_meta_s_two_differences_change_the_logits(case: Any) -> None:
    c = case("a wide one, as the template has it")
    theirs = model_of(c, "hf").logits(c.prompt, c.images)
    for quirk, value, least in (("tower_states", "before", 1e-2), ("blind_rows", "skip", 1e-3)):
        ours = model_of(c, "hf", **{quirk: value}).logits(c.prompt, c.images)
        assert rel_rms(ours, theirs) > least


def test_an_answer_goes_on_as_transformers_does(case: Any, ran: Any) -> None:
    """One token at a time, behind pictures that are seen together."""
    for name in ("side by side, apart, and side by side again", "a square one last"):
        assert greedy(model_of(case(name), "hf", "torch"), case(name)) == ran(name, "hf").greedy
