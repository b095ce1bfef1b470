"""Name the quantised types that kernels read, and find a type's layout."""

from importlib import import_module
from typing import Any

QUANTISED = frozenset(
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
)
"""The types that have a module in `decode`."""
DENSE = frozenset({"F16", "BF16", "F32"})
"""The types of numbers, which have no blocks."""


def layout(kind: str) -> Any:
    """Return `block(at, put, out)` of a type: `put(out, index, q, zero, f, m)` for each 16 weights (decode/)."""
    return import_module(f"{__package__}.decode.{kind.lower()}").block
