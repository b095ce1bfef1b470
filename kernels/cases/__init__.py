"""Cases for every kernel: what it computes on a device, and what its definition gives in float64.

Shapes are small and odd, so that a test can run them in Triton's interpreter and `selftest` on a card.
"""

from collections.abc import Iterator

from . import attention, products, rows
from .case import KernelCase

FAMILIES = (
    rows.planes,
    rows.activations,
    rows.gates_and_rope,
    rows.scores,
    products.matvec,
    products.dense,
    products.rows_and_matmul,
    attention.attention,
    attention.decode,
)


def cases(device: str) -> Iterator[KernelCase]:
    """Yield the cases of all kernels on "cuda"; or on "cpu", in Triton's interpreter."""
    for family in FAMILIES:
        yield from family(device)
