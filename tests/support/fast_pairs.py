"""Pairs that the fast operations of every device are tested with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.conformance.pairs.pairs import Pair, TextSpec, VisionSpec, build

from .helpers import rand

PROMPT = [1, 70, 71, 200, 5, 9, 250, 70, 33, 34, 35]
PICTURE = (rand(40, 56, 3) * 50 + 120).clip(0, 255).astype(np.uint8)
TEXTS = {
    "grouped heads, Q8_0": TextSpec(width=64, n_layer=2, mlp_width=96, kind="Q8_0"),
    "three types side by side": TextSpec(
        width=256, n_layer=1, n_head_kv=1, mlp_width=256, kind="Q4_0", words=("a",),
        kinds=(("*attn_k*", "Q4_K"), ("*ffn_up*", "Q6_K"), ("token*", "Q5_K")),
    ),
    "biases, F16": TextSpec(n_layer=2, biases=True, kind="F16"),
    "window, tied, BF16": TextSpec(n_layer=2, window=5, tied=True, kind="BF16"),
    "F32, yarn": TextSpec(n_layer=2, rope_scaling="yarn", original_context=64),
    "no kernel for MXFP4": TextSpec(width=64, n_layer=2, mlp_width=96, kind="MXFP4"),
    "no kernel for NVFP4": TextSpec(width=64, n_layer=2, mlp_width=128, kind="NVFP4"),
}  # fmt: skip
"""A card has no kernel for MXFP4, a processor none for NVFP4."""


def builder(folder: Callable[[str], Path]) -> Callable[[str], Pair]:
    """Return a function that builds a pair of `TEXTS`, or "gemma3", once; `folder` makes a new folder."""
    built: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in built:
            if name == "gemma3":
                built[name] = build_gemma3(folder("pair"), Gemma3Spec(), SiglipSpec())
            else:
                built[name] = build(folder("pair"), TEXTS[name], VisionSpec())
        return built[name]

    return pair
