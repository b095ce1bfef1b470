"""Make the random tensors behind a CLIP tower: its projector, and LLaVA-1.6's newline row.   D tower width."""

from typing import Protocol

from .random_weights import Random, affine_norm
from .writing import StoredTensor


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
    def peg(self) -> bool: ...
    @property
    def projector_gain(self) -> float: ...


def projector_tensors(s: Projected, text_width: int, random: Random) -> dict[str, StoredTensor]:
    tensors, gain = dict[str, StoredTensor](), s.projector_gain
    first = "mm.model.mlp.0" if s.peg else "mm.0"
    second = "mm.model.mlp.2" if s.peg else "mm.3" if s.norms else "mm.2"
    for name, rows, columns, size in (
        (first, s.middle, s.width, 1.5 * gain),
        (second, text_width, s.middle, 1.5 / gain),
    ):
        tensors[f"{name}.weight"] = random.matrix(name, rows, columns, size)
        tensors[f"{name}.bias"] = random.normal(f"{name}.bias", rows, std=0.1)
    if s.peg:  # llama.cpp convolves with nothing but float16
        kernel = random.normal("mm.model.peg.0", text_width, 1, 3, 3, std=0.4)
        tensors["mm.model.peg.0.weight"] = kernel.as_kind("F16")
        tensors["mm.model.peg.0.bias"] = random.normal("mm.model.peg.0.bias", text_width, std=0.1)
    if s.norms:
        tensors |= affine_norm("mm.1", s.middle, random) | affine_norm("mm.4", text_width, random)
    if s.sizes:
        tensors["v.image_newline"] = random.normal("v.image_newline", text_width)
    return tensors
