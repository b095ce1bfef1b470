"""InternVL's differences, each of which `conform` names unaided, and planted faults, each seen at its stage."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llava_ref
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.pairs.internvl import TEMPLATE
from llava_ref.images.resample import BILINEAR
from llava_ref.models import dynamic_tiles, internvl, vit
from llava_ref.models.dynamic_tiles import DynamicTiles
from llava_ref.models.internvl import InternVL, InternWeights
from llava_ref.models.vit import VitBlock

from .family_stages import BOUND, Asked
from .internvl_cases import FAMILY, TOWER, WORDS
from .reference_cases import EVERYTHING, compared, differing, model_of, trace

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
WIDE, LARGE_EPS = "a wide one, as the template has it", "a tall one first, llama, MHA, large eps"
Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


@pytest.mark.parametrize("reference", ["hf", "llama.cpp"])
@pytest.mark.parametrize("name", [WIDE, "one tile", "small ones that a tile holds"])
def test_conform_in_its_profile_every_stage_agrees(case: Any, ran: Any, reference: str, name: str) -> None:
    report = compared(case(name), ran(name, reference), profile=reference)
    assert report.same and not report.findings


def test_conform_in_precision_ggml_every_stage_agrees(case: Any, ran: Any) -> None:
    fixed = {"kv_cache": "f32", "flash_attention": "off"}
    report = compared(case(WIDE), ran(WIDE, "llama.cpp"), fixed, profile="llama.cpp", precision="ggml")
    assert report.same and not report.findings


ONE = replace(TOWER, most_tiles=1)
DIFFERENCES: dict[tuple[int, int], tuple[Any, dict[str, tuple[str, ...]]]] = {
    (28, 28): (TOWER, {"vision.pos_embd": ("class_token=last",)}),
    (20, 28): (TOWER, {"vision.pixels": ("tile_shape=pixels", "tiling=larger")}),
    (84, 57): (TOWER, {"vision.pixels": ("fit=letterbox",)}),
    (40, 400): (TOWER, {"vision.pixels#6": ("resize_order=horizontal",)}),
    (90, 40): (TOWER, {
        "vision.pixels": ("fit=letterbox --quirk tile_shape=pixels",), "vision.patch_embd#3": ("tile_shape=pixels",),
    }),
    (29, 29): (
        ONE, {"vision.pixels#1": ("lone_tile=both",), "vision.pos_embd#1": ("class_token=last --quirk lone_tile=both",)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", DIFFERENCES, ids=str)
def test_conform_names_each_difference(tmp_path: Path, size: tuple[int, int]) -> None:
    vision, wanted = DIFFERENCES[size]
    case = FAMILY.write(tmp_path, Asked("what <image> is", (size,), vision=vision))
    report = compared(case, LlamaCpp(stages=EVERYTHING).run(case), profile="hf")
    found = {finding.stage: finding.explained for finding in report.findings}
    assert {stage: found[stage] for stage in wanted} == wanted
    assert all(found.values()), "a difference that no quirk explains"


def shuffled(x: Any, n: int, s: int) -> Any:
    """Put the columns of a square before its lines."""
    m = n // s
    return x[np.arange(n * n).reshape(m, s, m, s).transpose(0, 2, 3, 1).ravel()].reshape((m * m, -1))


def weights(change: Callable[[InternWeights], InternWeights]) -> Plant:
    sound = internvl.load
    return lambda patch: patch.setattr(internvl, "load", lambda *given: change(sound(*given)))


def blocks(change: Callable[[VitBlock], VitBlock]) -> Plant:
    return weights(lambda w: replace(w, blocks=tuple(map(change, w.blocks))))


def tiles(change: Callable[[list[Any]], list[Any]]) -> Plant:
    sound = DynamicTiles.fitted
    return lambda patch: patch.setattr(DynamicTiles, "fitted", lambda self, rgb: change(sound(self, rgb)))


def last_patch_lost(patch: Patch) -> None:
    sound = vit.blocks
    patch.setattr(vit, "blocks", lambda *given: np.roll(sound(*given), 1, axis=0))


FAULTS: dict[str, tuple[str, str, Plant]] = {
    "columns of a square before its lines": (
        WIDE, "projector.shuffle", lambda patch: patch.setattr(internvl, "shuffle", shuffled)),
    "the class token kept, the last patch lost": (WIDE, "vision.features", last_patch_lost),
    "positions off by one": (
        WIDE, "vision.pos_embd", weights(lambda w: replace(w, position=np.roll(w.position, 1, axis=0)))),
    "attention without its layer scale": (
        WIDE, "vision.blk.0.ffn_inp", blocks(lambda block: replace(block, attn_scale=None))),
    "the MLP by attention's layer scale": (
        WIDE, "vision.blk.0.layer_out", blocks(lambda block: replace(block, mlp_scale=block.attn_scale))),
    "the projector's norm with the tower's epsilon": (
        LARGE_EPS, "projector.mm_0", lambda patch: patch.setattr(internvl, "PROJECTOR_EPS", 0.05)),
    "overview first": (WIDE, "image.seen", tiles(lambda fitted: [*fitted[-1:], *fitted[:-1]])),
    "bilinear": (WIDE, "image.seen", lambda patch: patch.setattr(dynamic_tiles, "BICUBIC", BILINEAR)),
}  # fmt: skip


def test_a_large_tower_without_its_norms_of_queries_is_seen(tmp_path: Path, monkeypatch: Patch) -> None:
    asked = Asked("what <image> is", ((28, 28),), vision=replace(TOWER, large=True, biases=False))
    case = FAMILY.write(tmp_path, asked)
    right = trace(model_of(case, "hf"), case)

    def plain(w: InternWeights) -> InternWeights:
        def ones(b: VitBlock) -> VitBlock:
            assert b.qk_norms is not None
            return replace(b, qk_norms=(b.qk_norms[0] * 0 + 1, b.qk_norms[1]))

        return replace(w, blocks=tuple(map(ones, w.blocks)))

    weights(plain)(monkeypatch)
    assert next(iter(differing(trace(model_of(case, "hf"), case), right, BOUND))) == "vision.blk.0.Qcur"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_at_its_stage(case: Any, ran: Any, monkeypatch: Patch, fault: str) -> None:
    name, stage, plant = FAULTS[fault]
    plant(monkeypatch)
    bad = differing(trace(model_of(case(name), "hf"), case(name)), ran(name, "hf").stages, BOUND)
    assert bad and next(iter(bad)) == stage


def test_a_tower_with_the_other_gelu_is_seen(case: Any, ran: Any) -> None:
    bad = differing(trace(model_of(case(WIDE), "hf", gelu="tanh"), case(WIDE)), ran(WIDE, "hf").stages, BOUND)
    assert bad and next(iter(bad)) == "vision.blk.0.ffn_act"


# chat_template.jinja of OpenGVLab/InternVL3-1B-hf: a picture stands on a line of its own.
THEIRS = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_conversation_has_a_line_for_each_picture(case: Any) -> None:
    c = case(WIDE)
    content = [{"type": "image", "image": c.images[0].read_bytes()}, {"type": "text", "text": WORDS}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"},
                {"role": "user", "content": "what is"}]  # fmt: skip
    found = []
    for template in (TEMPLATE, THEIRS):
        model = llava_ref.load(c.text, c.mmproj, backend="numpy", profile="hf", template=template)
        found.append(model.request(messages))
        assert model.tokenizer.encode("<|im_end|>")[-1] in model.tokenizer.end_ids
    assert found[0].prompt.shown == found[1].prompt.shown and found[0].token_ids == found[1].token_ids
    assert found[0].prompt.shown.startswith(f"<|im_start|>user\n<image>\n{WORDS}<|im_end|>\n<|im_start|>assistant\nred")
    assert isinstance(model.tower, InternVL)
