"""Multiply 1 to 8 rows of activations by a quantised matrix, as it is stored in planes: the decoding step's products.

A program of 8 warps computes 16 outputs of one row of x, or 32 of 2 or 4 rows; products.py says how. Predicted from
machine code for sm_90 (Triton 3.9), never timed, for one row of x:

    instructions a weight   Q4_0 1.7, Q4_K 2.0, Q8_0 2.2, Q5_K 2.5, Q2_K 2.5, Q6_K 2.7, Q3_K 2.8, IQ4_NL 2.9, IQ4_XS 3.2
    busiest pipe, in % of the time that the weights take to arrive on H100 (H200 1.43 times as much)
                            Q8_0 23, Q4_0 33, Q4_K 34, Q6_K 34, Q5_K 37, IQ4_NL 58, Q3_K 63, IQ4_XS 65, Q2_K 78

2 rows take 1.2 to 1.4 times the instructions of one, 4 rows 1.7 to 2.4 times: there dp4a is the bound of 4-bit types,
with 78% of that time for Q4_K on H100. So 5 to 8 rows run as two programs of 4, which share their weights in the L2
cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from llava_ref.ops.protocol import Activation

from ..planes import LAYOUTS, SCALES, SUPERS, Planes
from .activations import Activations, write_terms
from .gates import activate
from .products import LANES, products
from .variant import REAL, Variant

WARPS, MOST = 8, 8


@dataclass(frozen=True, slots=True)
class Config:
    """How many rows of weights a program takes at once, how far ahead it loads, and what a thread may hold.

    128 registers leave room for two programs on an SM; without a limit ptxas tries for more programs, and spills."""

    rows: int
    ahead: int  # trips
    registers: int


CONFIGS = {1: Config(16, 2, 128), 2: Config(32, 1, 255), 4: Config(32, 1, 255)}
"""By how many rows of x a program multiplies."""


@triton.jit
def _matvec(
    first, second, scale, sums, quants, high, scales, supers, bias, add, out, M, N, TRIPS, COUNT: tl.constexpr,
    ROWS: tl.constexpr, AHEAD: tl.constexpr, BITS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr,
    TABLE: tl.constexpr, SCALE: tl.constexpr, PDL: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Compute ROWS outputs for COUNT rows of x."""
    m, n = tl.program_id(0) * COUNT, tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(n, N - 1)
    x, planes = (first, second, scale, sums), (quants, high, scales, supers)
    y = products(x, planes, row, m, M, TRIPS, COUNT, AHEAD, BITS, HIGH, ZERO, TABLE, SCALE, PDL, REAL)
    for i in tl.static_range(COUNT):
        inside, total = n < tl.where(m + i < M, N, 0), y[i]
        if bias is not None:
            total += tl.load(bias + row)
        if add is not None:
            total += tl.load(add + (m + i) * N + row, inside)
        tl.store(out + (m + i) * N + n, total, inside)


@triton.jit
def _gated(
    first, second, scale, sums, quants, high, scales, supers, out_x, out_first, out_second, out_scale, out_sums, M, F,
    TRIPS, GROUPS, KIND: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr,
    BITS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, TABLE: tl.constexpr, SCALE: tl.constexpr,
    PDL: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Compute a group of 32 outputs for COUNT rows of x, in passes of ROWS rows: first gate's, then up's."""
    PASSES: tl.constexpr = 64 // ROWS
    m, group = tl.program_id(0) * COUNT, tl.program_id(1)
    x, planes = (first, second, scale, sums), (quants, high, scales, supers)
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros((PASSES, ROWS), tl.float32),)
    for part in range(PASSES):
        f = group * 32 + part * ROWS % 32 + tl.arange(0, ROWS)
        row = part * ROWS // 32 * F + tl.minimum(f, F - 1)
        y = products(x, planes, row, m, M, TRIPS, COUNT, AHEAD, BITS, HIGH, ZERO, TABLE, SCALE, PDL, REAL)
        filled = ()
        for i in tl.static_range(COUNT):
            filled = filled + (tl.where((tl.arange(0, PASSES) == part)[:, None], y[i][None, :], tiles[i]),)
        tiles = filled
    for i in tl.static_range(COUNT):
        gate, up = tl.split(tiles[i].reshape(2, 1, 32).permute(1, 2, 0))
        column = group * 32 + tl.arange(0, 32)[None, :]
        y = tl.where(column < F, activate(gate, KIND) * up, 0.0)
        at = (m + i) * GROUPS + group + tl.arange(0, 1)
        inside = m + i + tl.arange(0, 1) < M
        write_terms(y, at, inside, out_x, out_first, out_second, out_scale, out_sums)


def matvec(
    x: Activations, w: Planes, out: Tensor | None = None, *, bias: Tensor | None = None, add: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:  # fmt: skip
    """Return x w^T + bias + add.  (M, K) (N, K) (N,) (M, N) -> (M, N) float32, M from 1 to 8

    `out` may be `add` itself. Raises ValueError."""
    M, N, trips = _check(x, w)
    out = torch.empty(M, N, dtype=torch.float32, device=x.x.device) if out is None else out
    for name, tensor, shape in (("out", out, (M, N)), ("bias", bias, (N,)), ("add", add, (M, N))):
        if tensor is not None and (
            tensor.dtype != torch.float32 or tensor.shape != shape or not tensor.is_contiguous()
        ):
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, expected contiguous float32 {shape}")
    count, options = _options(M, w, pdl)
    grid = (triton.cdiv(M, count), triton.cdiv(N, options["ROWS"]))
    _matvec[grid](*_inputs(x, w), bias, add, out, M, N, trips, **options)
    return out


def gated(
    x: Activations, w: Planes, kind: Activation, out: Activations | None = None, *, pdl: bool = False
) -> Activations:
    """Return activation(x gate^T) * (x up^T) as Activations, w being gate's F rows and behind them up's.

    (M, K) (2 F, K) -> (M, F), M from 1 to 8. `out` holds zeros behind F, as `Activations.empty` makes them. Raises
    ValueError."""
    M, N, trips = _check(x, w)
    if kind not in get_args(Activation):
        raise ValueError(f"kind: {kind}, expected one of {', '.join(get_args(Activation))}")
    if N % 2:
        raise ValueError(f"w: {N} rows, expected an even number")
    out = Activations.empty(M, N // 2, x.x.device) if out is None else out
    groups = triton.cdiv(N // 2, 32)
    if out.x.shape != (M, triton.cdiv(groups * 32, 1024) * 1024):
        raise ValueError(f"out: rows {tuple(out.x.shape)}, expected {(M, N // 2)} padded to a multiple of 1024")
    count, options = _options(M, w, pdl)
    results = (out.x, out.first, out.second, out.scale, out.sums)
    _gated[(triton.cdiv(M, count), groups)](
        *_inputs(x, w), *results, M, N // 2, trips, out.scale.shape[1], KIND=kind, **options
    )
    return out


def _check(x: Activations, w: Planes) -> tuple[int, int, int]:
    """Return M, N and the trips through a row of planes. Raises ValueError where x and w do not fit."""
    (M, Kp), N, groups = x.x.shape, w.quants.shape[0], w.scales.shape[1]
    if not 1 <= M <= MOST:
        raise ValueError(f"x: {M} rows, expected 1 to {MOST}")
    if Kp != groups * 32:
        raise ValueError(f"x: {Kp} columns with their padding, expected {groups * 32} as w")
    if w.quants.device != x.x.device:
        raise ValueError(f"w: on {w.quants.device}, expected {x.x.device} as x")
    return M, N, groups * 32 // _trip(w.type)


def _trip(kind: str) -> int:
    """Return the weights of a row in a trip."""
    return LANES.value * (16 if LAYOUTS[kind].bits == 8 else 32)


def _count(M: int) -> int:
    """Return how many rows of x a program multiplies by."""
    return min(triton.next_power_of_2(M), 4)


def _inputs(x: Activations, w: Planes) -> tuple[Tensor | None, ...]:
    return x.first, x.second, x.scale, x.sums, w.quants, w.high, w.scales, w.supers


def _constants(kind: str, count: int, pdl: bool) -> dict[str, Any]:
    layout, config = LAYOUTS[kind], CONFIGS[count]
    return {
        "COUNT": count, "ROWS": config.rows, "AHEAD": config.ahead, "BITS": layout.bits, "HIGH": layout.high,
        "ZERO": layout.zero, "TABLE": layout.table, "SCALE": layout.scale, "PDL": pdl,
    }  # fmt: skip


def _options(M: int, w: Planes, pdl: bool) -> tuple[int, dict[str, Any]]:
    """Return how many rows of x a program takes, and the kernel's constants and launch options."""
    count = _count(M)
    options = _constants(w.type, count, pdl and REAL) | {"REAL": REAL, "num_warps": WARPS}
    options["maxnreg"] = CONFIGS[count].registers
    return count, options | ({"launch_pdl": True} if pdl and REAL else {})


def variants() -> Iterator[Variant]:
    """List every type with 1, 2, and 4 (or 8) rows of x; shapes change no machine code."""
    for kind in LAYOUTS:
        for count in CONFIGS:
            yield from _variants(kind, count, False)
    for kind in ("Q4_K", "Q6_K"):
        yield from _variants(kind, 1, True)


def _variants(kind: str, count: int, pdl: bool) -> Iterator[Variant]:
    pointers = {torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32"}
    scale, config = LAYOUTS[kind].scale, CONFIGS[count]
    types = {"first": "*i32", "second": "*i32", "scale": "*fp32", "sums": "*fp32", "quants": "*i32"}
    types |= {"high": "*i32"} if LAYOUTS[kind].high else {}
    types |= {"scales": pointers[SCALES[scale]]} | ({"supers": pointers[SUPERS[scale]]} if scale in SUPERS else {})
    types |= {"M": "i32", "TRIPS": "i32"}
    constants = {"high": None, "supers": None} | _constants(kind, count, pdl)
    constants = {name: value for name, value in constants.items() if name not in types}
    shape: dict[str, Any] = {
        "warps": WARPS,
        "weights": config.rows * config.ahead * _trip(kind),
        "registers": config.registers,
    }
    name = f"{kind}, {count} row{'s' * (count > 1)}{', pdl' * pdl}"
    alone = types | {"out": "*fp32", "N": "i32"}
    results = {"out_first": "*i32", "out_second": "*i32", "out_x": "*fp32", "out_scale": "*fp32", "out_sums": "*fp32"}
    paired = types | results | {"F": "i32", "GROUPS": "i32"}
    none = {"bias": None, "add": None}
    yield Variant(f"matvec {name}", _matvec, alone, constants | none, **shape)
    yield Variant(f"gated {name}", _gated, paired, constants | {"KIND": "silu"}, **shape)
