"""Make the random tensors behind a CLIP tower: its projector, and LLaVA-1.6's newline row.   D tower width."""

from typing import Literal, Protocol

from .random_weights import Random, affine_norm
from .writing import StoredTensor

Mobile = Literal["ldp", "ldpv2"]
NAMES: dict[Mobile, tuple[str, str]] = {  # the two matrices
    "ldp": ("mm.model.mlp.1", "mm.model.mlp.3"),
    "ldpv2": ("mm.model.mlp.0", "mm.model.mlp.2"),
}


class Projected(Protocol):
    """What a specification says of the projector."""

    @property
    def width(self) -> int: ...
    @property
    def middle(self) -> int: ...
    @property
    def sizes(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def norms(self) -> bool: ...
    @property
    def mobile(self) -> Mobile | None: ...
    @property
    def projector_gain(self) -> float: ...


def projector_tensors(s: Projected, text_width: int, random: Random) -> dict[str, StoredTensor]:
    tensors, gain = dict[str, StoredTensor](), s.projector_gain
    first, second = NAMES[s.mobile] if s.mobile else ("mm.0", "mm.3" if s.norms else "mm.2")
    for name, rows, columns, size in (
        (first, s.middle, s.width, 1.5 * gain),
        (second, text_width, s.middle, 1.5 / gain),
    ):
        tensors |= _linear(name, rows, columns, random, size)
    if s.mobile == "ldpv2":
        tensors["mm.model.peg.0.weight"] = _kernel("mm.model.peg.0", text_width, random)
        tensors["mm.model.peg.0.bias"] = random.normal("mm.model.peg.0.bias", text_width, std=0.1)
    elif s.mobile == "ldp":
        for name in ("mm.model.mb_block.1.block", "mm.model.mb_block.2.block"):
            tensors |= _mobile_block(name, text_width, random)
    if s.norms:
        tensors |= affine_norm("mm.1", s.middle, random) | affine_norm("mm.4", text_width, random)
    if s.sizes:
        tensors["v.image_newline"] = random.normal("v.image_newline", text_width)
    return tensors


def _mobile_block(name: str, D: int, random: Random) -> dict[str, StoredTensor]:
    R = D // 4 + 3
    return {
        f"{name}.0.0.weight": _kernel(f"{name}.0.0", D, random),
        **affine_norm(f"{name}.0.1", D, random),
        **_linear(f"{name}.1.fc1", R, D, random, 3.0),
        **_linear(f"{name}.1.fc2", D, R, random, 1.5),
        f"{name}.2.0.weight": random.matrix(f"{name}.2.0", D, D),
        **affine_norm(f"{name}.2.1", D, random),
    }


def _linear(name: str, rows: int, columns: int, random: Random, gain: float) -> dict[str, StoredTensor]:
    return {
        f"{name}.weight": random.matrix(name, rows, columns, gain),
        f"{name}.bias": random.normal(f"{name}.bias", rows, std=0.1),
    }


def _kernel(name: str, D: int, random: Random) -> StoredTensor:
    """Return 3 x 3 numbers for each channel; llama.cpp convolves with nothing but float16."""
    return random.normal(name, D, 1, 3, 3, std=0.4).as_kind("F16")
