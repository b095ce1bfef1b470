"""Multiply up to 8 rows by a matrix of float32, float16 or bfloat16, and apply what follows the product.

A lane reads 16 bytes of four rows of the matrix at once, and what it reads of x serves all four from registers. A
weight is converted once (not float32) and costs M multiply-adds. Read from the machine code for sm_90, a byte of
float16 costs 1.5 to 1.8 instructions for one row of x, 3.0 for four and 5.1 for eight, and bfloat16 up to a sixth
more; an H200 issues 6.9 and an H100 9.9 while its memory delivers a byte. So memory is the bound, by far for one row.

`matvec` lays all 128 lanes along a row, so that 4096 rows of the matrix make 1024 programs, resident together for one
row of x. `gated` gives each of 8 warps rows of its own, and goes through 32 rows of gate, then the 32 of up, so that a
program quantises the whole group. The part of a row that is shorter than a tile comes first: it alone needs a mask, and
it is asked for before the kernel waits for the one in front of it. Other tiles are not asked for ahead: 24 KiB in
flight keep an SM's memory busy, and the warps that fit ask for 64 and more for one row, for 24 (`matvec`) and 16
(`gated`, 232 registers) for eight rows.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from llava_ref.ops.protocol import Activation

from ..planes import PAD
from .activations import Activations, launch, write_terms
from .gates import KINDS, TYPES, activate
from .variant import REAL, Variant

MATVEC = {"R": 4, "A": 1, "B": 128}  # sets of rows of the matrix, rows of a set, lanes along a row
GATED = {"R": 4, "A": 8, "B": 32}
MOST = 8
"""Rows of x in one launch."""


@triton.jit
def columns(x, V: tl.constexpr):
    """Split x (A, B, V) into V tiles (A, B), in an order that depends on V alone: registers renamed, nothing moves."""
    A: tl.constexpr = x.shape[0]
    B: tl.constexpr = x.shape[1]
    if V == 1:
        return (x.reshape(A, B),)
    else:
        even, odd = tl.split(x.reshape(A, B, V // 2, 2))
        return columns(even, V // 2) + columns(odd, V // 2)


@triton.jit
def side_by_side(tiles, N: tl.constexpr):
    """Make N tiles (A, B) one (A, B, N)."""
    if N == 1:
        return tiles[0][:, :, None]
    else:
        even, odd = (), ()
        for i in tl.static_range(0, N, 2):
            even, odd = even + (tiles[i],), odd + (tiles[i + 1],)
        pairs = tl.join(side_by_side(even, N // 2), side_by_side(odd, N // 2))
        return pairs.reshape(tiles[0].shape[0], tiles[0].shape[1], N)


@triton.jit
def _weights(starts, at, K: tl.constexpr, R: tl.constexpr, MASK: tl.constexpr):
    """Load a tile (A, B, V) of each of R sets of rows; `starts` points at the rows, `at` counts columns."""
    tiles = ()
    for r in tl.static_range(R):
        if MASK:
            tiles = tiles + (tl.load(starts[r] + at, at < K, other=0.0),)
        else:
            tiles = tiles + (tl.load(starts[r] + at),)
    return tiles


@triton.jit
def _add_products(sums, tiles, x, Kp: tl.constexpr, R: tl.constexpr, M: tl.constexpr, V: tl.constexpr):
    """Add the products of R tiles of weights with M rows; `x` points at the tile's columns of the first row."""
    w, new = (), ()
    for r in tl.static_range(R):
        w = w + columns(tiles[r].to(tl.float32), V)
    for m in tl.static_range(M):
        y = columns(tl.load(x + m * Kp), V)
        for r in tl.static_range(R):
            total = sums[m * R + r]
            for i in tl.static_range(V):
                total += w[r * V + i] * y[i]
            new = new + (total,)
    return new


@triton.jit
def _products(
    starts, x, K: tl.constexpr, Kp: tl.constexpr, R: tl.constexpr, M: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    V: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Multiply R sets of A rows of the matrix by M rows of x: M tiles (A * R,)."""
    TILE: tl.constexpr = B * V
    FIRST: tl.constexpr = (K - 1) // TILE * TILE
    at = tl.zeros((A, 1, 1), tl.int32) + tl.arange(0, B)[None, :, None] * V + tl.arange(0, V)[None, None, :]
    tiles = _weights(starts, FIRST + at, K, R, K % TILE != 0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sums = ()
    for _ in tl.static_range(M * R):
        sums = sums + (tl.zeros((A, B), tl.float32),)
    sums = _add_products(sums, tiles, x + FIRST + at, Kp, R, M, V)
    for k in range(0, FIRST, TILE):
        sums = _add_products(sums, _weights(starts, k + at, K, R, False), x + k + at, Kp, R, M, V)
    out = ()
    for m in tl.static_range(M):
        out = out + (tl.sum(side_by_side(sums[m * R : m * R + R], R), 1).reshape(A * R),)
    return out


@triton.jit
def _matvec(
    x, w, bias, add, out, N, K: tl.constexpr, Kp: tl.constexpr, M: tl.constexpr, R: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, V: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute A * R consecutive outputs of every row."""
    first = tl.program_id(0) * (A * R)
    starts = ()
    for r in tl.static_range(R):
        row = tl.minimum(first + tl.arange(0, A) * R + r, N - 1)
        starts = starts + ((w + row.to(tl.int64) * K)[:, None, None],)
    products = _products(starts, x, K, Kp, R, M, A, B, V, PDL)
    column = first + tl.arange(0, A * R)
    inside = column < N
    for m in tl.static_range(M):
        y = products[m]
        if bias is not None:
            y += tl.load(bias + column, inside, other=0.0)
        if add is not None:
            y += tl.load(add + m * N + column, inside, other=0.0)
        tl.store(out + m * N + column, y, inside)


@triton.jit
def _gated(
    x, w, out, first, second, scale, sums, K: tl.constexpr, Kp: tl.constexpr, F: tl.constexpr, Fp: tl.constexpr,
    KIND: tl.constexpr, M: tl.constexpr, R: tl.constexpr, A: tl.constexpr, B: tl.constexpr, V: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Compute activation(gate) * up of 32 consecutive outputs of every row, and quantise them."""
    group = tl.program_id(0)
    up = ()
    for _ in tl.static_range(M):
        up = up + (tl.zeros((A * R,), tl.float32),)
    gate = up
    for half in range(2):
        starts = ()
        for r in tl.static_range(R):
            row = tl.minimum(group * 32 + tl.arange(0, A) * R + r, F - 1) + half * F
            starts = starts + ((w + row.to(tl.int64) * K)[:, None, None],)
        gate = up
        up = _products(starts, x, K, Kp, R, M, A, B, V, PDL)
    inside = group * 32 + tl.arange(0, 32) < F
    for m in tl.static_range(M):
        y = tl.where(inside, activate(gate[m], KIND) * up[m], 0.0)[None, :]
        at = m * (Fp // 32) + group + tl.arange(0, 1)
        write_terms(y, at, at >= 0, out, first, second, scale, sums)


def matvec(
    x: Activations, w: Tensor, out: Tensor | None = None, *, bias: Tensor | None = None, add: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:  # fmt: skip
    """Return x w^T + bias + add, float32, in `out`, which may be `add` itself.  x of M rows, w (N, K) -> (M, N)

    bias is float32 (N,), add and out are float32 (M, N). Raises ValueError."""
    constants = _constants(x, w)
    M, N = constants["M"], w.shape[0]
    out = torch.empty(M, N, dtype=torch.float32, device=w.device) if out is None else out
    for name, t, shape in (("out", out, (M, N)), ("bias", bias, (N,)), ("add", add, (M, N))):
        if t is not None and (t.dtype != torch.float32 or t.shape != shape or not t.is_contiguous()):
            raise ValueError(f"{name}: {t.dtype} {tuple(t.shape)}, expected contiguous float32 {shape}")
    grid = (triton.cdiv(N, MATVEC["R"] * MATVEC["A"]),)
    _matvec[grid](x.x, w, bias, add, out, N, **constants, **MATVEC, PDL=pdl and REAL, num_warps=4, **launch(pdl))
    return out


def gated(
    x: Activations, w: Tensor, kind: Activation, out: Activations | None = None, *, pdl: bool = False
) -> Activations:
    """Return activation(x gate^T) * (x up^T) as Activations in `out`; w (2F, K) holds gate's rows, then up's.

    Raises ValueError."""
    constants = _constants(x, w)
    M, F = constants["M"], w.shape[0] // 2
    if kind not in KINDS:
        raise ValueError(f"kind: {kind}, expected one of {', '.join(KINDS)}")
    if w.shape[0] != 2 * F:
        raise ValueError(f"w: {w.shape[0]} rows, expected as many of gate as of up")
    out = Activations.empty(M, F, w.device) if out is None else out
    Fp = -(-F // PAD) * PAD
    if out.x.shape != (M, Fp):
        raise ValueError(f"out: rows {tuple(out.x.shape)}, expected {(M, Fp)}")
    _gated[(triton.cdiv(F, 32),)](
        x.x, w, out.x, out.first, out.second, out.scale, out.sums, **constants, **GATED, F=F, Fp=Fp, KIND=kind,
        PDL=pdl and REAL, num_warps=8, **launch(pdl),
    )  # fmt: skip
    return out


def _constants(x: Activations, w: Tensor) -> dict[str, int]:
    """Check that x can be multiplied by w, and return what both kernels are compiled for.  Raises ValueError."""
    if w.dtype not in TYPES or w.ndim != 2 or not w.is_contiguous():
        raise ValueError(f"w: {w.dtype} {tuple(w.shape)} {w.stride()}, expected contiguous float32 or 16-bit (N, K)")
    (M, Kp), K = x.x.shape, w.shape[1]
    if not 1 <= M <= MOST or Kp != -(-K // PAD) * PAD:
        raise ValueError(f"x: rows {M} x {Kp}, expected 1..{MOST} rows of {K} padded to a multiple of {PAD}")
    return {"K": K, "Kp": Kp, "M": M, "V": 16 // w.element_size()}


def variants() -> Iterator[Variant]:
    """List the products of LLaVA-1.5-7B that differ in machine code: rows of x, type, and a K that leaves a rest."""
    f, i = "*fp32", "*i32"
    for dtype, K, M, pdl in (
        (torch.float16, 4096, 1, True), (torch.float16, 4096, 2, False), (torch.float16, 4096, 4, False),
        (torch.float16, 4096, 8, False), (torch.float16, 11008, 1, True), (torch.bfloat16, 11008, 1, False),
        (torch.float32, 4096, 1, False),
    ):  # fmt: skip
        w, V = TYPES[dtype], 16 // dtype.itemsize
        label = f"{w} {K}, {M} row{'s' * (M > 1)}{', pdl' * pdl}"
        common = {"K": K, "Kp": -(-K // PAD) * PAD, "M": M, "V": V, "PDL": pdl}
        types, constants = {"x": f, "w": f"*{w}", "add": f, "out": f, "N": "i32"}, {**common, **MATVEC, "bias": None}
        weights = V * MATVEC["R"] * MATVEC["A"] * MATVEC["B"]
        yield Variant(f"dense matvec {label}", _matvec, types, constants, weights=weights)
        if K == 4096:
            types = {"x": f, "w": f"*{w}", "out": f, "first": i, "second": i, "scale": f, "sums": f}
            gate = {**common, **GATED, "F": 11008, "Fp": 11264, "KIND": "silu"}
            weights = V * GATED["R"] * GATED["A"] * GATED["B"]
            yield Variant(f"dense gated {label}", _gated, types, gate, warps=8, weights=weights)
