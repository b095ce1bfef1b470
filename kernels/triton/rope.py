"""Turn pairs of channels by rotary angles in Triton: queries and keys of many rows at once.

T rows, H heads, dh head size. A kernel reads and writes 4 bytes a value, once; torch's own operations would pass over
the rows six times. A program turns 16 heads of one row, so that 640 rows of 32 heads are 1,280 programs. The channels
of adjacent pairs are read with a stride of two: both halves of a line are used, the second from the L1 cache.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .variant import Variant

HEADS = 16  # of a program


@triton.jit
def _rope(
    x, cos, sin, out, row, H, HALF: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, HALVES: tl.constexpr
):  # fmt: skip
    """Turn heads of row program_id(0); P is HALF, the number of pairs, padded to a power of two."""
    t, heads, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, P)
    inside = (heads < H)[:, None] & (i < HALF)[None, :]
    first = i[None, :] if HALVES else 2 * i[None, :]
    second = first + HALF if HALVES else first + 1
    at = heads[:, None] * (2 * HALF)
    a = tl.load(x + t * row + at + first, inside, 0.0)
    b = tl.load(x + t * row + at + second, inside, 0.0)
    c = tl.load(cos + t * HALF + i, i < HALF, 0.0)[None, :]
    s = tl.load(sin + t * HALF + i, i < HALF, 0.0)[None, :]
    to = out + t * H * (2 * HALF) + at
    tl.store(to + first, a * c - b * s, inside)
    tl.store(to + second, a * s + b * c, inside)


def rope(x: Tensor, cos: Tensor, sin: Tensor, pairs: Literal["adjacent", "halves"]) -> Tensor:
    """Turn each pair of channels by the angle of the row's position.  (T, H, dh) (T, dh/2) (T, dh/2) -> (T, H, dh)

    All float32; the rows of x may lie apart, as columns of a wider product. Raises ValueError."""
    (T, H, dh), half = x.shape, x.shape[-1] // 2
    if x.dtype != torch.float32 or x.stride()[1:] != (dh, 1) or dh % 2:
        raise ValueError(f"x: {x.dtype} {tuple(x.shape)} {x.stride()}, expected float32 with heads side by side")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype != torch.float32 or table.shape != (T, half) or not table.is_contiguous():
            raise ValueError(f"{name}: {table.dtype} {tuple(table.shape)}, expected float32 ({T}, {half})")
    out = torch.empty((T, H, dh), device=x.device)
    grid = (T, triton.cdiv(H, HEADS))
    P = triton.next_power_of_2(half)
    _rope[grid](x, cos, sin, out, x.stride(0), H, HALF=half, P=P, HEADS=HEADS, HALVES=pairs == "halves", num_warps=4)
    return out


def variants() -> Iterator[Variant]:
    """List the head sizes of LLaVA-1.5-7B, with adjacent pairs, and of Gemma 3, with halves."""
    types = dict.fromkeys(("x", "cos", "sin", "out"), "*fp32") | {"row": "i32:16", "H": "i32"}
    for half, halves in ((64, False), (128, True)):
        constants = {"HALF": half, "P": half, "HEADS": HEADS, "HALVES": halves}
        yield Variant(f"rope, head size {2 * half}, {'halves' if halves else 'adjacent'}", _rope, types, constants)
