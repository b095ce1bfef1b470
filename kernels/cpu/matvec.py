"""Multiply a matrix by a few rows, T of them, from the file's own blocks: one kernel a type.

The matrix is read once. Rows are rounded (activations.py) for types of codes, float32 for dense ones.
"""

from functools import cache
from importlib import import_module

from llava_ref.gguf.types import TYPES

from .activations import RoundedRows
from .compiled import Kernel
from .launch import Launch, arguments
from .sums import FEW, SOME, Work
from .traced import Number
from .typed import DENSE, QUANTISED

__all__ = ["DENSE", "FEW", "SUPPORTED", "matvec"]
SUPPORTED = DENSE | QUANTISED
UNIT = 64 << 10
"""Bytes of a matrix that a thread takes at least: some microseconds."""


@cache
def _kernel(kind: str, one: bool) -> Kernel:
    """Return a type's kernel for one row of x, or for several."""
    block = import_module(f".blocks.{kind.lower()}", __package__).BLOCK

    def multiply(args: Number, first: Number, end: Number) -> None:
        block.products(Work(args, first, end, one))

    return Kernel(f"matvec.{kind.lower()}.{'one_row' if one else 'some_rows'}", multiply)


def matvec(
    kind: str, blocks: int, N: int, K: int, x: RoundedRows | int, rows: int, out: int, bias: int = 0, add: int = 0
) -> Launch:
    """Write x w^T + bias + add to `out`, at most `FEW` rows of x; 0 for no bias, nothing to add.

    Arguments are addresses: w (N, K) in blocks of type `kind`, x (rows, K) float32 for dense types, out and add
    (rows, N) float32, which may be the same. Raises ValueError for more rows than `FEW`."""
    if rows > FEW:
        raise ValueError(f"rows: {rows}, expected at most {FEW}")
    row_bytes = K // TYPES[kind].weights * TYPES[kind].bytes
    address, x_bytes = (x, 4 * K) if isinstance(x, int) else (x.address, x.row_bytes)
    args = arguments(blocks, row_bytes, K, address, x_bytes, rows, out, N, bias, add)
    return Launch(_kernel(kind, rows == 1), args, N, -(-UNIT // (SOME * row_bytes)) * SOME)
