"""Describe one compiled form of a kernel, so that its machine code can be read where no device is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import triton

REAL = not triton.knobs.runtime.interpret
"""Whether kernels are compiled; False in Triton's interpreter, which knows no inline PTX."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel with everything fixed that its machine code depends on."""

    name: str  # "matvec Q4_K, 1 row"
    kernel: Any  # the @triton.jit function
    types: Mapping[str, str]
    """Run-time arguments: "*i32", "*fp32", "i32", ...; pointers are taken to be 16-byte aligned."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Values of the `tl.constexpr` arguments; REAL is set to True."""
    warps: int = 4
    stages: int = 3
    registers: int | None = None
    """Registers of a thread at most; None: as many as ptxas likes."""
    weights: int = 0
    """Weights that one program uses up in one trip of its innermost loop; 0 for a kernel that reads none."""
