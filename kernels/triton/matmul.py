"""Multiply 9 and more rows by planes, dequantised in registers on their way to the tensor cores.

x w^T = the sum over 16 places of a dot over the groups: bytes 0 and 2 of quad t are place 2t, its bytes 1 and 3 place
2t + 1. A tile of one place is one int32 a group, (BN, BG), whose two bytes become two float16, (BN, 2 BG), in three
instructions: the bits 0x6400 | u are 1024 + u, then the offset goes and the scale comes. So a thread that holds the
words of a group holds its weights in all 16 tiles, as the tensor cores want them, and nothing moves between threads.
x is put into the same order beforehand, (16, M, G, 2). Minimums are a 17th place, against sums of x over 16 weights.

Rows of x are multiplied by a power of two that brings their largest value to 2^9..2^10, so that float16 tiles hold any
x: they round 8 times as finely as bfloat16 ones and cost a third fewer instructions. A weight must be below 65504.

Compiled by Triton 3.9 for sm_90: no spills, 114 to 184 registers, all planes through asynchronous copies. Up to 32
rows 3.8 instructions a weight (Q4_0), 4.2 (Q4_K), 4.9 (Q6_K), 5.4 (IQ4_XS). Prediction for Q4_K, 16 rows: they take
107% of the time that the bytes take on an H200, 75% on an H100. Every place waits for its product (Triton does so where
registers feed the tensor cores), so several programs share a multiprocessor. On sm_100, where weights must go through
shared memory, 5.1 to 9.3 instructions and a barrier a place or more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..planes import LAYOUTS, SCALES, SUPERS, Planes
from .fitting import launch_fitting
from .quads import factors, four, quads
from .rows import POINTERS
from .variant import REAL, Variant

PLACES = 16


@dataclass(frozen=True, slots=True)
class Tiling:
    """Rows of w, rows of x and groups that a program takes in a trip."""

    BN: int
    BM: int
    BG: int
    warps: int
    stages: int


@triton.jit
def _order(x, out, powers, M, K, G, SUMS: tl.constexpr, BG: tl.constexpr):
    """Write a row of x in the order of places, scaled, as `out` is typed, and the power of two that undoes the scale.

    An infinity or NaN stays one. With SUMS, the sums over 16 of what was written are one more place."""
    m = tl.program_id(0).to(tl.int64)
    group, place = tl.arange(0, BG)[:, None, None], tl.arange(0, 16)[None, :, None]
    half = tl.arange(0, 2)[None, None, :]
    column = group * 32 + place // 2 * 4 + place % 2 + 2 * half
    here = tl.load(x + m * K + column, mask=column < K, other=0.0).to(tl.float32)
    most = tl.max(tl.reshape(here.to(tl.int32, bitcast=True) & 0x7FFFFFFF, (BG * 32,)), 0)
    exponent = tl.minimum(tl.maximum(most >> 23, 10), 254)
    tl.store(powers + m, ((exponent - 9) << 23).to(tl.float32, bitcast=True))
    here = (here * ((263 - exponent) << 23).to(tl.float32, bitcast=True)).to(out.dtype.element_ty)
    tl.store(out + (place * M + m) * (2 * G) + 2 * group + half, here, mask=group < G)
    if SUMS:
        sums = tl.sum(tl.sum(here.to(tl.float32).reshape(BG, 2, 8, 2), 3), 2)
        at = 2 * tl.arange(0, BG)[:, None] + tl.arange(0, 2)[None, :]
        tl.store(out + (16 * M + m) * (2 * G) + at, sums.to(out.dtype.element_ty), mask=at < 2 * G)


@triton.jit
def _words(plane, row, group, G: tl.constexpr, PER: tl.constexpr):
    """Load a plane's words of each group, PER tiles."""
    at = (row.to(tl.int64)[:, None] * G + group[None, :]) * PER
    if PER == 1:
        return (tl.load(plane + at),)
    else:
        w = tl.load(plane + at[:, :, None] + tl.arange(0, PER)[None, None, :])
        if PER == 2:
            return tl.split(w)
        elif PER == 4:
            return four(w)
        else:
            even, odd = tl.split(w.reshape(w.shape[0], w.shape[1], 4, 2))
            a, c, e, g = four(even)
            b, d, f, h = four(odd)
            return (a, b, c, d, e, f, g, h)


@triton.jit
def _tile(quad, s, ZERO: tl.constexpr, T: tl.constexpr):
    """Return the weights of bytes 0 and 2 side by side.  (BN, BG) int32, (BN, BG) float32 or float16 -> (BN, 2 BG)"""
    u = (quad & 0x00FF00FF) | 0x64006400
    low = (u & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True) - (1024.0 + ZERO)
    high = (u >> 16).to(tl.int16).to(tl.float16, bitcast=True) - (1024.0 + ZERO)
    both = tl.join(low.to(s.dtype) * s, high.to(s.dtype) * s)
    return both.to(T).reshape(quad.shape[0], 2 * quad.shape[1])


@triton.jit
def _matmul(
    x, powers, quants, high, scales, supers, out, M, N, G: tl.constexpr, PART: tl.constexpr, BITS: tl.constexpr,
    HIGH: tl.constexpr, ZERO: tl.constexpr, TABLE: tl.constexpr, SCALE: tl.constexpr, MINIMUM: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BG: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = x.dtype.element_ty
    n, m = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * BM + tl.arange(0, BM)
    row, column = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    xs = x + column.to(tl.int64)[None, :] * (2 * G) + tl.arange(0, 2 * BG)[:, None]
    step = tl.full([], 2 * G, tl.int64) * M  # M itself may be a constant
    y = tl.zeros((BN, BM), tl.float32)
    for first in range(tl.program_id(2) * PART, tl.minimum(G, tl.program_id(2) * PART + PART), BG):
        group = first + tl.arange(0, BG)
        words = _words(quants, row, group, G, BITS)
        more = ()
        if HIGH > 0:
            more = _words(high, row, group, G, HIGH)
        d = None
        if supers is not None:
            d = tl.load(supers + row.to(tl.int64)[:, None] * (G // 8) + group[None, :] // 8)
        s0, s1, m0, m1 = factors(_words(scales, row, group, G, 1)[0], d, SCALE)
        if T == tl.float16:
            s0, s1 = s0.to(T), s1.to(T)
        quad = quads(words, more, BITS, HIGH, TABLE, REAL)
        for place in tl.static_range(16):
            q = quad[place // 2] >> (8 * (place % 2))
            if BITS == 8 or TABLE:
                q ^= 0x00800080
            s = s0
            if place >= 8:
                s = s1
            xp = tl.load(xs + place * step + 2 * first)
            y = tl.dot(_tile(q, s, ZERO, T), xp, y, input_precision="ieee")
        if MINIMUM:
            least = tl.join(m0, m1).reshape(BN, 2 * BG)
            y = tl.dot((-least).to(T), tl.load(xs + 16 * step + 2 * first), y, input_precision="ieee")
    y = y * tl.load(powers + column)[None, :]
    to = (tl.program_id(2) * M + m).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out + to, y, mask=(n < N)[:, None] & (m < M)[None, :])


TILINGS = {16: Tiling(64, 16, 16, 4, 2), 32: Tiling(64, 32, 16, 4, 2), 64: Tiling(128, 64, 8, 8, 2)}
TILINGS |= {128: Tiling(128, 128, 8, 8, 2)}
"""The tiling by rows of x: the first that holds them all, or the last."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def matmul(x: Tensor, w: Planes, *, bias: Tensor | None = None, dtype: torch.dtype = torch.float16) -> Tensor:
    """Return x w^T + bias, in tiles of `dtype` summed up in float32.  (M, K) (N, K) (N,) -> (M, N) float32

    Raises ValueError for x of another width, and for a `dtype` other than float16, bfloat16 and float32."""
    (M, K), N = x.shape, w.shape[0]
    if K != w.shape[1] or not x.is_contiguous():
        raise ValueError(f"x: expected (M, {w.shape[1]}) without gaps, not {tuple(x.shape)} of strides {x.stride()}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype} is not one of {', '.join(map(str, DTYPES))}")
    tiling = TILINGS[min((BM for BM in TILINGS if M <= BM), default=max(TILINGS))]
    G, constants = w.scales.shape[1], _constants(w.type)
    ordered = torch.empty((PLACES + constants["MINIMUM"], M, 2 * G), dtype=dtype, device=x.device)
    powers = torch.empty(M, dtype=torch.float32, device=x.device)
    _order[(M,)](x, ordered, powers, M, K, G, constants["MINIMUM"], triton.next_power_of_2(G), num_warps=8)
    parts = _parts(M, N, G, tiling)
    out = torch.empty((parts, M, N), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(N, tiling.BN), triton.cdiv(M, tiling.BM), parts)
    shape = {"G": G, "PART": triton.cdiv(G // 32, parts) * 32, "BN": tiling.BN, "BM": tiling.BM, "BG": tiling.BG}
    supers = None if w.supers is None else w.supers.to(torch.int32)  # 16 bits would not be loaded ahead of their use
    arguments = (ordered, powers, w.quants, w.high, w.scales, supers, out, M, N)
    fixed = constants | shape | {"REAL": REAL}
    launch_fitting(_matmul, grid, arguments, fixed, warps=tiling.warps, stages=tiling.stages)
    y = out[0] if parts == 1 else out.sum(0)
    return y if bias is None else y + bias


def _parts(M: int, N: int, G: int, tiling: Tiling) -> int:
    """Return among how many programs to share K, so that 132 multiprocessors have two each, where K allows."""
    tiles = triton.cdiv(N, tiling.BN) * triton.cdiv(M, tiling.BM)
    most = G // 32
    per = triton.cdiv(most, max(1, min(most, 264 // tiles)))
    return triton.cdiv(most, per)


def _constants(kind: str) -> dict[str, Any]:
    layout = LAYOUTS[kind]
    of_type = {"BITS": layout.bits, "HIGH": layout.high, "TABLE": layout.table, "SCALE": layout.scale}
    signed = layout.table or layout.bits == 8
    return of_type | {"ZERO": 128 if signed else layout.zero, "MINIMUM": layout.scale in ("f16x2", "k", "k16m")}


def variants() -> Iterator[Variant]:
    """List every type in the tiling of 16 rows, and the other tilings; bfloat16 tiles once."""
    chosen = [(kind, 16, "float16") for kind in LAYOUTS] + [("Q4_K", rows, "float16") for rows in (32, 64, 128)]
    for kind, rows, dtype in [*chosen, ("Q6_K", 64, "float16"), ("Q4_K", 64, "bfloat16")]:
        layout, tiling = LAYOUTS[kind], TILINGS[rows]
        types = {"x": {"float16": "*fp16", "bfloat16": "*bf16"}[dtype], "powers": "*fp32", "quants": "*i32"}
        types |= {"high": "*i32"} if layout.high else {}
        types |= {"scales": POINTERS[SCALES[layout.scale]]} | ({"supers": "*i32"} if layout.scale in SUPERS else {})
        absent = {plane: None for plane in ("high", "supers") if plane not in types}
        shape = {"G": 128, "PART": 128, "BN": tiling.BN, "BM": tiling.BM, "BG": tiling.BG}
        yield Variant(
            f"matmul {kind}, {rows} rows, {dtype}",
            _matmul,
            types | {"out": "*fp32", "M": "i32", "N": "i32"},
            _constants(kind) | absent | shape,
            tiling.warps,
            tiling.stages,
            weights=tiling.BN * tiling.BG * 32,
        )
