"""How far one stage may be from a reference's, computed from the same inputs.

Two computations may both be float32 (this project in precision `exact`, transformers), both ggml's (precision `ggml`,
llama.cpp), or one of each; the last differ by the rounding of activations to the type of the weights, and by ggml's
tables of float16. Bounds are about twice the worst that was measured on random models.
"""

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal

from llava_ref.gguf.types import TYPES
from llava_ref.models.stages import Kind, Stage

Arithmetic = Literal["float32", "ggml"]
FLOAT32 = 2e-6
"""Sums of float32 products in another order."""
SOFTMAX = 1e-5
"""Attention: sums of float32, and an exponential that ggml approximates by a polynomial."""
TABLE = 1e-3
"""An activation read from a table of float16 values, which has eleven bits: 2.8e-4 on the whole."""
FLASH = 5e-3
"""ggml's flash attention and its cache, in float16, against float32."""
FLASH_ALIKE = 1e-4
"""The same against its emulation: sums of float16 are rounded after every key, and some fall the other way."""
JPEG = 3.0
"""Levels of 255 by which decoders of JPEG may differ."""
HANDED_ON, TO_ATTENTION = 1.0, 4.0
"""How much of its inputs' rounding may be in what a stage gives; attention's exponential makes more of it. Measured in
F16 and BF16 alike, on the embedded pair and random ones, beyond the stage's own rounding: 0.22 and 2.4 times."""
EXACT = 1e-6
"""What must be equal: bytes, and float32 made of them in at most three operations."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit, and what it limits."""

    measure: Literal["rel_rms", "max_abs"]
    limit: float


@dataclass(frozen=True, slots=True)
class Terms:
    """What is compared with what."""

    ours: Arithmetic
    theirs: Arithmetic
    flash_attention: bool
    """Whether one side computes attention in float16."""
    positions: int
    jpeg: bool


def bound(stage: Stage, weight_type: str | None, terms: Terms) -> Bound:
    """For one stage. `weight_type`: ggml type of the matrix it is a product with, if there is one."""
    if stage.kind == "exact":
        return Bound("max_abs", JPEG if terms.jpeg and stage.name in ("image.rgb", "image.seen") else EXACT)
    if terms.ours == terms.theirs:
        return Bound("rel_rms", max(_alike(stage.kind, terms), rope(stage, terms)))
    return Bound("rel_rms", max(_unlike(stage, weight_type, terms), rope(stage, terms)))


def widened(bounds: Mapping[str, Bound], recorded: Container[str]) -> dict[str, Bound]:
    """In the order of stages: one that is recorded answers for those before it that are not, up to the one recorded
    last. Errors of independent roundings add up as squares."""
    found, left_out = dict(bounds), list[float]()
    for name, own in bounds.items():
        rounds = [own.limit] if own.measure == "rel_rms" else []
        if name in recorded and left_out:
            found[name] = Bound("rel_rms", math.hypot(*left_out, *rounds))
        left_out = [] if name in recorded else [*left_out, *rounds]
    return found


def recorded(own: Bound, kind: Kind, moved: tuple[float, float] | None, inputs: float) -> Bound:
    """A stage's bound where a recording is F16 or BF16: what it is otherwise, and by how much that has `moved` it
    (`tracing.distance.rounding`: relative RMS, and the most; None for a stage in float32), and what its `inputs` have
    of it, by the largest relative RMS of any stage: the reference had them as they were."""
    if own.measure == "max_abs":
        return own if moved is None else Bound("max_abs", own.limit + moved[1])
    handed_on = (TO_ATTENTION if kind == "attention" else HANDED_ON) * inputs
    return Bound("rel_rms", own.limit + (moved[0] if moved else 0.0) + handed_on)


def recorded_logits(kl: float, most: float) -> float:
    """Nats a position where logits were rounded by at most `most`. Logits that are off by d, of variance v under the
    prediction, cost v / 2 nats (to second order), and two errors add up as their roots do at worst."""
    return (math.sqrt(kl) + most / math.sqrt(2)) ** 2 if most else kl


def rope(stage: Stage, terms: Terms) -> float:
    """ggml multiplies angles up in float32, this project has them from float64: the error of an angle grows with the
    position, and turns a pair of channels by as much. Measured over 840 positions: 4.4e-6."""
    return FLOAT32 + 2e-8 * terms.positions if stage.name.endswith("_rope") else 0.0


def _alike(kind: Kind, terms: Terms) -> float:
    if kind == "attention":
        return FLASH_ALIKE if terms.flash_attention else SOFTMAX
    return FLOAT32


def _unlike(stage: Stage, weight_type: str | None, terms: Terms) -> float:
    if stage.kind == "attention":
        return FLASH if terms.flash_attention else SOFTMAX
    if stage.kind == "table":
        return TABLE
    if stage.kind == "matmul":
        # The patch embedding is a product of float16 numbers in ggml whatever the file has (im2col).
        types = [weight_type or "F32"] + ["F16"] * (stage.name == "vision.patch_embd")
        return max(map(matmul, types))
    return FLOAT32


def matmul(kind: str) -> float:
    """Float32 on dequantised weights against ggml's product, which rounds activations to suit this type."""
    plain = {"F32": FLOAT32, "F16": 5e-4, "BF16": 4e-3}
    if kind in plain:
        return plain[kind]
    return 2e-2 if TYPES[kind].weights == 32 else 4e-2


def divergence(kind: str) -> float:
    """Nats a position, end to end, with weights of this type."""
    plain = {"F32": 5e-4, "F16": 5e-4, "BF16": 5e-3}
    if kind in plain:
        return plain[kind]
    return 8e-2 if TYPES[kind].weights == 32 else 0.15


def margin(kind: str) -> float:
    """Logits by which another token may lead and it is still rounding."""
    return {"F32": 0.01, "F16": 0.1, "BF16": 0.2}.get(kind, 1.0)


def coarsest(kinds: set[str]) -> str:
    """The type that rounds most; F32 of none."""
    return max(kinds, key=matmul, default="F32")
