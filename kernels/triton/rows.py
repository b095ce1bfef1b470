"""Dequantise rows of planes: an embedding whose ids lie on the device, or every row of a matrix.

A thread takes words of `quants`, of 4, 8 or 16 weights that stand side by side in the row, so that neighbours read and
write side by side. Its scales it reads from the L1 cache but for the first time. Compiled for sm_90, Q4_K to bfloat16:
10 instructions a weight, 80 clocks of the ALU for 1024 weights, while their 2.6 KB take 141 clocks of an H200's memory
(prediction): the 6.7 G weights of a 7B model take the 4 ms of their bytes. Q6_K: 15 instructions, 145 clocks of 155.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..planes import LAYOUTS, SCALES, SUPERS, Planes
from .quads import factors, quads
from .variant import REAL, Variant

BLOCK = 512
"""Words of a program: one row of 4096 4-bit weights."""
TYPES = {torch.float32: torch.float32, torch.float16: torch.float16, torch.bfloat16: torch.int16}
"""Types of the result, and as what it is written: the interpreter truncates to bfloat16 and has to be helped."""

POINTERS = {torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32"}


@triton.jit
def _rounded(x, BF16: tl.constexpr, REAL: tl.constexpr):
    """Round to the nearest bfloat16, to the even one of two, and return its bits; else leave x as it is."""
    if BF16 and REAL:
        return x.to(tl.bfloat16).to(tl.int16, bitcast=True)
    elif BF16:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC00000, bits + 0x7FFF + (bits >> 16 & 1))
        return (bits >> 16).to(tl.int16)
    else:
        return x


@triton.jit
def _high(high, row, word, f: tl.constexpr, G: tl.constexpr, BITS: tl.constexpr, HIGH: tl.constexpr):
    """Return the high bits of quad f of each word, moved up to stand above its BITS lower ones."""
    quad = word % BITS * (8 // BITS) + f
    at = row * (G * HIGH) + word // BITS * HIGH + quad * HIGH // 8
    return (tl.load(high + at) >> quad * HIGH % 8 & 0x01010101 * (2**HIGH - 1)) << BITS


@triton.jit
def _scales(scales, supers, row, word, G: tl.constexpr, BITS: tl.constexpr, SCALE: tl.constexpr):
    """Return each word's scale and minimum; the words of the second half of a group have their own."""
    group = word // BITS
    d = None
    if supers is not None:
        d = tl.load(supers + row * (G // 8) + group // 8)
    s0, s1, m0, m1 = factors(tl.load(scales + row * G + group), d, SCALE)
    second = word % BITS * 2 >= BITS
    return tl.where(second, s1, s0), tl.where(second, m1, m0)


@triton.jit
def _weights(quad, s, m, factor, ZERO: tl.constexpr, BF16: tl.constexpr, REAL: tl.constexpr):
    """Return the four weights of a quad, a tile each."""
    out = ()
    for j in tl.static_range(4):
        q = ((quad << (24 - 8 * j)) >> 24) - ZERO
        out = out + (_rounded((s * q.to(tl.float32) - m) * factor, BF16, REAL),)
    return out


@triton.jit
def _beside(x, first: tl.constexpr, step: tl.constexpr):
    """Put tiles first, first + step, ... side by side in new last axes, of two each."""
    if first + step < len(x):
        return tl.join(_beside(x, first, 2 * step), _beside(x, first + step, 2 * step))
    else:
        return x[first]


@triton.jit
def _rows(
    quants, high, scales, supers, ids, out, n, K, factor, G: tl.constexpr, BITS: tl.constexpr, HIGH: tl.constexpr,
    ZERO: tl.constexpr, TABLE: tl.constexpr, SCALE: tl.constexpr, BF16: tl.constexpr, BLOCK: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    FIELDS: tl.constexpr = 8 // BITS
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    to, word = at // (G * BITS), at % (G * BITS)
    inside, to = to < n, to.to(tl.int64)
    row = tl.minimum(to, n - 1)
    if ids is not None:
        row = tl.load(ids + row).to(tl.int64)
    s, m = _scales(scales, supers, row, word, G, BITS, SCALE)
    low = quads((tl.load(quants + row * (G * BITS) + word),), (), BITS, 0, TABLE, REAL)
    weights = ()
    for f in tl.static_range(FIELDS):
        quad = low[f]
        if HIGH > 0:
            quad |= _high(high, row, word, f, G, BITS, HIGH)
        weights = weights + _weights(quad, s, m, factor, ZERO, BF16, REAL)
    column = word[:, None] * (4 * FIELDS) + tl.arange(0, 4 * FIELDS)[None, :]
    inside = inside[:, None] & (column < K)
    tl.store(out + to[:, None] * K + column, _beside(weights, 0, 1).reshape(BLOCK, 4 * FIELDS), mask=inside)


def rows(
    w: Planes, ids: Tensor, out: Tensor | None = None, *, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> Tensor:
    """Dequantise rows `ids` (n,) int32 of w, in float32, multiply by `scale`, and round to `dtype`.  -> (n, K)

    The ids stay on the device: nothing checks that w has such rows. Raises ValueError for ids or an output of another
    type or shape, and for a `dtype` other than float32, float16 and bfloat16."""
    if ids.dtype != torch.int32 or ids.dim() != 1 or not ids.is_contiguous():
        raise ValueError(f"ids: expected (n,) int32 without gaps, not {tuple(ids.shape)} {ids.dtype}")
    return _launch(w, ids, len(ids), out, dtype, scale)


def dense(w: Planes, dtype: torch.dtype, out: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
    """Dequantise every row in float32, multiply by `scale`, and round to `dtype`.  -> (N, K)

    Raises ValueError for an output of another type or shape, and for a `dtype` other than float32, float16 and
    bfloat16."""
    return _launch(w, None, w.shape[0], out, dtype, scale)


def _launch(w: Planes, ids: Tensor | None, n: int, out: Tensor | None, dtype: torch.dtype, scale: float) -> Tensor:
    if dtype not in TYPES:
        raise ValueError(f"dtype: {dtype} is not one of {', '.join(map(str, TYPES))}")
    if out is None:
        out = torch.empty((n, w.shape[1]), dtype=dtype, device=w.quants.device)
    if out.shape != (n, w.shape[1]) or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(f"out: expected {(n, w.shape[1])} {dtype} without gaps, not {tuple(out.shape)} {out.dtype}")
    grid = (triton.cdiv(n * w.quants.shape[1], BLOCK),)
    tensors = (w.quants, w.high, w.scales, w.supers, ids, out.view(TYPES[dtype]))
    _rows[grid](*tensors, n, w.shape[1], scale, **_constants(w.type, w.scales.shape[1], dtype), REAL=REAL, **OPTIONS)
    return out


OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
"""Without fused multiply-adds the result is that of torch_quants, bit for bit."""


def _constants(kind: str, groups: int, dtype: torch.dtype) -> dict[str, Any]:
    layout = LAYOUTS[kind]
    of_type = {"BITS": layout.bits, "HIGH": layout.high, "ZERO": layout.zero, "TABLE": layout.table}
    return of_type | {"SCALE": layout.scale, "G": groups, "BF16": dtype == torch.bfloat16, "BLOCK": BLOCK}


def variants() -> Iterator[Variant]:
    """List the forms whose machine code differs: every type as float32 rows, and as a bfloat16 matrix."""
    types = {"quants": "*i32", "n": "i32", "K": "i32:16", "factor": "fp32"}
    for kind, layout in LAYOUTS.items():
        planes = {"high": "*i32"} if layout.high else {}
        planes |= {"scales": POINTERS[SCALES[layout.scale]]}
        planes |= {"supers": POINTERS[SUPERS[layout.scale]]} if layout.scale in SUPERS else {}
        absent = {name: None for name in ("high", "supers") if name not in planes}
        for name, dtype, more in [
            ("rows", torch.float32, {"ids": "*i32", "out": "*fp32"}),
            ("dense", torch.bfloat16, {"out": "*i16"}),
        ]:
            constants = _constants(kind, 4096 // 32, dtype) | absent | ({} if "ids" in more else {"ids": None})
            yield Variant(f"{name} {kind}", _rows, types | planes | more, constants, weights=BLOCK * 32 // layout.bits)
