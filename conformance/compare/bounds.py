"""Bound the distance of one stage from a reference's, computed from the same inputs.

Two computations may both be float32 (this project in precision `exact`, transformers), both ggml's (precision `ggml`,
llama.cpp), or one of each; the last differ by the rounding of activations to suit the type of the weights, and by
ggml's tables of float16. Precision `fast` multiplies and attends in float16 on a CUDA device; on a processor it
multiplies many rows in bfloat16 or int8. Bounds are about twice the worst error that was measured on random models.
"""

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from llava_ref.gguf.types import TYPES
from llava_ref.models.stages import Kind, Stage

Arithmetic = Literal["float32", "ggml", "fast", "fast_cpu"]
ARITHMETICS: Mapping[str, Arithmetic] = {name: name for name in get_args(Arithmetic)}
FLOAT32 = 2e-6
"""Relative RMS of sums of float32 products in another order."""
SOFTMAX = 1e-5
"""The same for attention: sums of float32, and an exponential that ggml approximates by a polynomial."""
TABLE = 1e-3
"""The same for an activation read from a table of float16 values, which have eleven bits: measured 2.8e-4 over all."""
FLASH = 5e-3
"""The same for ggml's flash attention and its cache, in float16, against float32."""
FLASH_ALIKE = 1e-4
"""The same against its emulation: sums of float16 are rounded after every key, and some round the other way."""
JPEG = 3.0
"""Levels of 255 by which JPEG decoders may differ."""
FAST: Mapping[Arithmetic, Mapping[Kind, float]] = {
    "fast": {"matmul": 7e-4, "attention": 8e-4},
    "fast_cpu": {"matmul": 1.4e-2, "attention": 4e-3},
}
"""Relative RMS by which precision `fast` moves a stage: measured 3.3e-4 and 3.6e-4 in float16; on a processor 2.9e-3 in
bfloat16, up to 7e-3 in int8, and 2.1e-3 for attention."""
PASSED_ON, TO_ATTENTION = 1.0, 4.0
"""Factors by which the rounding of a stage's inputs may appear in its output; attention's exponential amplifies it.
Measured in F16 and BF16 alike, on the embedded pair and random ones, beyond the stage's own rounding: 0.22 and 2.4."""
EXACT = 1e-6
"""Largest difference where values must be equal: bytes, and float32 computed from them in at most three operations."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Holds a limit and the measure that it limits."""

    measure: Literal["rel_rms", "max_abs"]
    limit: float


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Holds what the tolerances of a comparison depend on."""

    ours: Arithmetic
    theirs: Arithmetic
    flash_attention: bool
    """Whether one side computes attention in float16."""
    positions: int
    jpeg: bool


def bound(stage: Stage, weight_type: str | None, t: Tolerances) -> Bound:
    """Return the bound of one stage. `weight_type`: ggml type of the matrix that it is a product with, if any."""
    if stage.kind == "exact":
        return Bound("max_abs", JPEG if t.jpeg and stage.name in ("image.rgb", "image.seen") else EXACT)
    if t.ours in FAST or t.theirs in FAST:
        ours, theirs = ("float32" if one in FAST else one for one in (t.ours, t.theirs))
        plain = bound(stage, weight_type, replace(t, ours=ours, theirs=theirs))
        bfloat16 = matmul("BF16") if weight_type == "BF16" else 0.0
        fast = [FAST[one].get(stage.kind, 0.0) for one in (t.ours, t.theirs) if one in FAST]
        return Bound("rel_rms", max(plain.limit, *fast, bfloat16))
    if t.ours == t.theirs:
        return Bound("rel_rms", max(_alike(stage.kind, t), rope(stage, t)))
    return Bound("rel_rms", max(_unlike(stage, weight_type, t), rope(stage, t)))


def arithmetic(settings: Mapping[str, Any]) -> Arithmetic:
    """Return the arithmetic of this project with a model's settings."""
    if settings["precision"] == "fast":
        return "fast_cpu" if settings["device"] == "cpu" else "fast"
    return "ggml" if settings["precision"] == "ggml" else "float32"


def widened(bounds: Mapping[str, Bound], recorded: Container[str]) -> dict[str, Bound]:
    """Widen the bound of each recorded stage by those of the stages before it that are not recorded.

    `bounds` are in the order of stages; the errors of independent roundings add up as squares."""
    wider, skipped = dict(bounds), list[float]()
    for name, local in bounds.items():
        rounds = [local.limit] if local.measure == "rel_rms" else []
        if name in recorded and skipped:
            wider[name] = Bound("rel_rms", math.hypot(*skipped, *rounds))
        skipped = [] if name in recorded else [*skipped, *rounds]
    return wider


def recorded(local: Bound, kind: Kind, moved: tuple[float, float] | None, inputs: float) -> Bound:
    """Widen a stage's bound for a recording in F16 or BF16.

    `moved`: how far recording may have moved the stage (`tracing.distance.rounding`: relative RMS, and the maximum),
    None for a stage in float32. `inputs`: the largest relative RMS by which recording may have moved any stage; the
    reference computed with inputs that were not rounded."""
    if local.measure == "max_abs":
        return local if moved is None else Bound("max_abs", local.limit + moved[1])
    passed_on = (TO_ATTENTION if kind == "attention" else PASSED_ON) * inputs
    return Bound("rel_rms", local.limit + (moved[0] if moved else 0.0) + passed_on)


def recorded_logits(kl: float, most: float) -> float:
    """Return the bound of KL, in nats a position, for logits that were rounded by at most `most`.

    An error d of the logits costs v / 2 nats to second order, where v is the variance of d under the prediction. At
    worst the square roots of two such costs add up."""
    return (math.sqrt(kl) + most / math.sqrt(2)) ** 2 if most else kl


def rope(stage: Stage, t: Tolerances) -> float:
    """Return the limit of a rotated stage, 0 for any other.

    ggml computes angles by repeated multiplication in float32, this project in float64: the error of an angle grows
    with the position and turns a pair of channels by as much. Measured over 840 positions: 4.4e-6."""
    return FLOAT32 + 2e-8 * t.positions if stage.name.endswith("_rope") else 0.0


def _alike(kind: Kind, t: Tolerances) -> float:
    """Return the limit if both sides compute in the same arithmetic."""
    if kind == "attention":
        return FLASH_ALIKE if t.flash_attention else SOFTMAX
    return FLOAT32


def _unlike(stage: Stage, weight_type: str | None, t: Tolerances) -> float:
    """Return the limit if one side computes in float32 and the other as ggml does."""
    if stage.kind == "attention":
        return FLASH if t.flash_attention else SOFTMAX
    if stage.kind == "table":
        return TABLE
    if stage.kind == "matmul":
        # ggml computes the patch embedding as a product of float16 numbers for any type in the file (im2col).
        types = [weight_type or "F32"] + ["F16"] * (stage.name == "vision.patch_embd")
        return max(map(matmul, types))
    return FLOAT32


def matmul(kind: str) -> float:
    """Return the limit of a float32 product against ggml's, which rounds activations to suit this weight type."""
    plain = {"F32": FLOAT32, "F16": 5e-4, "BF16": 4e-3}
    if kind in plain:
        return plain[kind]
    return 2e-2 if TYPES[kind].weights == 32 else 4e-2


def divergence(kind: str) -> float:
    """Return the bound of KL in nats a position, end to end, with weights of this type."""
    plain = {"F32": 5e-4, "F16": 5e-4, "BF16": 5e-3}
    if kind in plain:
        return plain[kind]
    return 8e-2 if TYPES[kind].weights == 32 else 0.15


def margin(kind: str) -> float:
    """Return the lead, in logits, of another token that rounding still explains."""
    return {"F32": 0.01, "F16": 0.1, "BF16": 0.2}.get(kind, 1.0)


def coarsest(kinds: set[str]) -> str:
    """Return the type that rounds most; F32 if there is none."""
    return max(kinds, key=matmul, default="F32")
