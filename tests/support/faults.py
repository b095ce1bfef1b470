"""Eleven faults that implementations of LLaVA have had, planted one at a time in a pair's files or in this project's
code.

Each gives the stage at which a comparison with a sound engine must stop, and no other stage may exceed its bound.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.pairs import Pair, Random, TextSpec, VisionSpec
from llava_ref.conformance.pairs.writing import held, write
from llava_ref.images.resample import BILINEAR

TEXT, VISION = TextSpec(), VisionSpec(feature_layer=4)
PROMPT = "the color of <image> is"
Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """What is wrong: other settings for the same weights, tensors or metadata changed, or code patched."""

    stage: str  # the first to be out, where the reference shows its squared picture
    only: tuple[str, ...] = ()  # patterns of all that may be out, where the same fault is in several places
    text: TextSpec = TEXT
    vision: VisionSpec = VISION
    tensors: Callable[[dict[str, Any]], None] = lambda tensors: None
    metadata: Callable[[dict[str, Any]], None] = lambda metadata: None
    patch: Patch = lambda monkeypatch: None

    def build(self, folder: Path) -> Pair:
        """The pair with the fault in it, if it is one of files."""
        random, pair = Random(0, 1.0), Pair(folder / "text.gguf", folder / "mmproj.gguf")
        tensors, metadata = pairs.text_tensors(self.text, random), dict(pairs.text_metadata(self.text))
        self.tensors(tensors)
        self.metadata(metadata)
        write(pair.text, metadata, tensors)
        tensors = pairs.vision_tensors(self.vision, self.text.width, random)
        metadata = dict(pairs.vision_metadata(self.vision, self.text.width))
        self.metadata(metadata)
        write(pair.mmproj, metadata, tensors)
        return pair


def _mean(metadata: dict[str, Any]) -> None:
    if "clip.vision.image_mean" in metadata:
        metadata["clip.vision.image_mean"] = [0.5, 0.5, 0.5]


def _bos(metadata: dict[str, Any]) -> None:
    if "tokenizer.ggml.bos_token_id" in metadata:
        metadata["tokenizer.ggml.bos_token_id"] = 2


def _heads(tensors: dict[str, Any]) -> None:
    """The heads of Q in another order, as a converter has them that permutes by the wrong number of heads."""
    rows = tensors["blk.1.attn_q.weight"].load()
    tensors["blk.1.attn_q.weight"] = held(rows.reshape(4, -1, rows.shape[1])[[1, 0, 2, 3]].reshape(rows.shape))


def _ffn(tensors: dict[str, Any]) -> None:
    gate, up = (f"blk.0.ffn_{part}.weight" for part in ("gate", "up"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def _bilinear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_ref.models.clip.BICUBIC", BILINEAR)


def _fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_ref.models.clip.LLAMA_CPP_FILL", (0, 0, 0))


FAULTS = {
    "bilinear resize": Fault("image.seen", patch=_bilinear),
    "wrong mean": Fault("vision.pixels", metadata=_mean),
    "padded colour": Fault("image.seen", patch=_fill),
    "GELU variant": Fault("vision.blk.0.ffn_act", ("*.ffn_act",), vision=replace(VISION, use_gelu=True)),
    "layer off by one": Fault(
        "vision.blk.3.layer_inp_normed", ("vision.blk.3.*", "vision.features"), vision=replace(VISION, feature_layer=3)
    ),
    "eps of the tower": Fault("vision.pre_ln", ("vision.pre_ln", "*_normed"), vision=replace(VISION, eps=1e-6)),
    "wrong BOS": Fault("token_ids", metadata=_bos),
    "eps of the decoder": Fault("blk.0.attn_norm", ("*_norm",), text=replace(TEXT, eps=1e-6)),
    "head permutation": Fault("blk.1.Qcur", tensors=_heads),
    "rope base": Fault("blk.0.Qcur_rope", ("blk.*_rope",), text=replace(TEXT, rope_base=10100.0)),
    "swapped FFN": Fault("blk.0.ffn_gate", ("blk.0.ffn_gate", "blk.0.ffn_up"), tensors=_ffn),
}
