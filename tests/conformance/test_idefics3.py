"""SmolVLM and Idefics3 against transformers (profile hf) and llama.cpp (settings EXACT), stage by stage, on random
pairs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llava_ref
from llava_ref.conformance.engines.hf import idefics3_prompt, settings
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs.idefics3 import TEMPLATE, Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.pairs import TextSpec
from llava_ref.images.resample import LANCZOS
from llava_ref.models import idefics3, named_tiles, siglip
from llava_ref.models.named_tiles import NamedTiles

from .family_stages import BOUND, Asked, Family, FamilyStages
from .reference_cases import compared, differing, model_of, random_sizes, trace

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
TOWER = Idefics3Spec(image_size=28, patch_size=7, longest=112)
WIDE, TALL, SQUARE, TINY, THIN = (131, 40), (37, 212), (90, 90), (9, 5), (200, 3)  # width, height
WORDS = "what is the color of a large small red circle, 12 or 345"
TURN = "<|im_start|>User:<image>{}<end_of_utterance>\nAssistant:"
CASES = {
    "a wide one, as the template has it": Asked(TURN.format(WORDS), (WIDE,)),
    "a tall one first, MHA, large eps": Asked(
        f"<image>{WORDS}", (TALL,), TextSpec(n_head_kv=4, eps=0.05), replace(TOWER, eps=0.05, swapped=True)
    ),
    "a square one last, squares of 4 patches": Asked(
        f"{WORDS}\n\n<image>", (SQUARE,), TextSpec(n_head_kv=1, tied=True), replace(TOWER, merge=4)
    ),
    "four of all shapes": Asked(
        "<image>\n\n<image>the color<image><image> red", (TINY, THIN, TALL, WIDE), vision=replace(TOWER, longest=84)
    ),
    "an odd number of patches, squares of 3, quick GELU": Asked(
        f"is<image>{WORDS}<image>", (TALL, (40, 41)), TextSpec(biases=True),
        replace(TOWER, image_size=45, patch_size=5, merge=3, longest=90, use_gelu=False),
    ),
    "a longer side of a tile and a part": Asked("<image>is<image>", ((100, 56), (57, 100)), vision=replace(
        TOWER, longest=100)),
    "a longer side of one tile": Asked("<image>is<image>", (WIDE, SQUARE), vision=replace(TOWER, longest=28)),
    "no key of the longer side": Asked("<image>is<image>", (WIDE, (70, 98)), vision=replace(TOWER, longest=None)),
}  # fmt: skip
FAMILY = Family("Idefics3", build_idefics3, CASES, TextSpec(context=1024), TOWER)
SIZES = random_sizes(
    600, lambda width, height: max(width, height) < 28 * min(width, height)
)  # that llama.cpp can resize


class TestStages(FamilyStages):
    pass


@pytest.mark.parametrize("name", ["a wide one, as the template has it", "a longer side of a tile and a part"])
def test_tiles_from_the_size_alone_are_transformers(case: Any, name: str) -> None:
    c, sizes = case(name), SIZES
    vision = replace(settings.read_tower(llava_ref.gguf.read(c.mmproj)), longest=(CASES[name].vision or TOWER).longest)
    tiles: Any = model_of(c, "hf").tower
    assert [tiles.tiles.grid(*size) for size in sizes] == idefics3_prompt.n_tiles(sizes, vision)


@pytest.mark.parametrize(
    "name", ["a longer side of a tile and a part", "a longer side of one tile", "no key of the longer side"]
)
def test_positions_from_the_size_alone_are_llama_cpp_s(case: Any, name: str) -> None:
    c, sizes = case(name), SIZES
    model = model_of(c, "llama.cpp")
    pictures = [np.zeros((height, width, 3), np.uint8) for width, height in sizes]
    found = [len(image.rows) for image in oracle.Oracle(c.text, c.mmproj, timeout=600).encode(pictures)]
    assert [model.span(*size).n_rows for size in sizes] == found


def test_a_strip_that_llama_cpp_cannot_resize_is_one_pixel_high_in_transformers(case: Any) -> None:
    name = "a wide one, as the template has it"
    strip = np.zeros((1, 300, 3), np.uint8)
    for profile in ("hf", "llama.cpp"):
        assert model_of(case(name), profile).preprocess(model_of(case(name), profile).decode_image(strip)).tiles
    with pytest.raises(oracle.OracleError):
        oracle.Oracle(case(name).text, case(name).mmproj).encode([strip])


Patch = pytest.MonkeyPatch


def shuffled(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Patch], None]:
    """Plant another order of the patches of a square: `change` of their numbers (m, s, m, s)."""

    def shuffle(x: Any, n: int, s: int) -> Any:
        m = n // s
        order = change(np.arange(n * n).reshape(m, s, m, s)).ravel()
        return x[order].reshape((m * m, -1))

    return lambda patch: patch.setattr(idefics3, "shuffle", shuffle)


def overview_first(patch: Patch) -> None:
    sound = NamedTiles.fitted
    patch.setattr(NamedTiles, "fitted", lambda self, rgb: [*sound(self, rgb)[-1:], *sound(self, rgb)[:-1]])


def overview_of_the_source(patch: Patch) -> None:
    def fitted(self: Any, rgb: Any) -> Any:
        return [*sound(self, rgb)[:-1], named_tiles.fit.stretch(rgb, self.side, LANCZOS)]

    sound = NamedTiles.fitted
    patch.setattr(NamedTiles, "fitted", fitted)


def changed_tower(change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    sound = siglip.load_tower
    return lambda patch: patch.setattr(siglip, "load_tower", lambda *given: change(sound(*given)))


FAULTS: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "columns of a square before its lines": (
        "projector.shuffle", shuffled(lambda order: order.transpose(0, 2, 3, 1))
    ),
    "positions off by one": (
        "vision.pos_embd", changed_tower(lambda w: replace(w, position=np.roll(w.position, 1, axis=0)))
    ),
    "overview first": ("image.seen", overview_first),
    "overview of the source": ("image.seen#8", overview_of_the_source),
    "one step of the two resizes": ("image.seen", lambda patch: patch.setattr(
        NamedTiles, "sizes", lambda self, width, height: (self._filled(112, 36), self._filled(112, 36)))),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_at_its_stage(
    case: Any, ran: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    name = "a wide one, as the template has it"
    stage, plant = FAULTS[fault]
    plant(monkeypatch)
    bad = differing(trace(model_of(case(name), "hf"), case(name)), ran(name, "hf").stages, BOUND)
    assert bad and next(iter(bad)) == stage


@pytest.mark.parametrize("reference", ["hf", "llama.cpp"])
def test_conform_in_its_profile_every_stage_agrees(case: Any, ran: Any, reference: str) -> None:
    for name in ("a wide one, as the template has it", "a longer side of one tile"):
        report = compared(case(name), ran(name, reference), profile=reference)
        assert report.same and not report.findings


@pytest.mark.parametrize(
    "name, stage, explained",
    [
        ("a tall one first, MHA, large eps", "vision.pixels", "resize_order=horizontal"),
        ("a longer side of a tile and a part", "vision.pixels", "tile_grid=sides"),
        ("a longer side of one tile", "vision.pixels#1", "lone_tile=both"),
        ("no key of the longer side", "vision.pixels", "longest_edge=own"),
    ],
)
def test_conform_names_each_difference(case: Any, ran: Any, name: str, stage: str, explained: str) -> None:
    report = compared(case(name), ran(name, "llama.cpp"), profile="hf")
    assert {finding.stage: finding.explained for finding in report.findings}[stage] == (explained,)


def test_a_conversation_is_rendered_as_the_processor_s_template_does(case: Any, ran: Any, tmp_path: Path) -> None:
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    c = case("a wide one, as the template has it")
    content = [{"type": "image", "image": c.images[0].read_bytes()}, {"type": "text", "text": WORDS}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"},
                {"role": "user", "content": "what is"}]  # fmt: skip
    found = {}
    for template in (TEMPLATE, DEFAULT_CHAT_TEMPLATE):
        model = llava_ref.load(c.text, c.mmproj, backend="numpy", profile="hf", template=template)
        found[template] = model.request(messages)
    (ours, theirs) = found.values()
    assert ours.prompt.shown == theirs.prompt.shown and ours.token_ids == theirs.token_ids
    assert ours.prompt.shown.startswith(TURN.format(WORDS).removesuffix("\nAssistant:"))
    assert model.tokenizer.encode("<end_of_utterance>")[-1] in model.tokenizer.end_ids
