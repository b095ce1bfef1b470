"""Round rows to two 8-bit terms for products with packed weights, alone or behind an RMS norm.

A group of 32 values x becomes d (q1 + q2 / 254): d = max|x| / 127, q1 = round(x / d), q2 = round(254 (x / d - q1)),
rounded to nearest, ties to even. The error of a value is at most d / 508, and a matrix takes two dp4a for four weights.
A kernel here reads 4 bytes a value and writes 6.4. Decoding launches them on one row of 4096 values, 16 KB in the L2
cache, where latency counts: `quantise` gives a warp 256 values, so that nothing waits at a barrier, and a norm gives a
program the whole row, which stays in registers between its sum and its product: 16 values a thread for rows of 4096.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..planes import PAD
from .variant import REAL, Variant

GROUP = tl.constexpr(32)
MAGIC = tl.constexpr(
    12582912.0
)  # 1.5 * 2^23: added to |y| < 2^22, its last bit is 1, so the sum is rounded to integers
TINY = tl.constexpr(0x0D800000)  # the bits of 2^-100: a group below it counts as zero, and 127 / max|x| stays finite
INFINITY = tl.constexpr(0x7F800000)
SIGN = tl.constexpr(0x7FFFFFFF)
NAN = tl.constexpr(float("nan"))


@dataclass(frozen=True, slots=True)
class Activations:
    """Rows that matrices are multiplied by, as float32 and as two 8-bit terms. Columns are padded with zeros to Kp."""

    x: Tensor  # float32 (M, Kp)
    first: Tensor  # int32 (M, Kp / 4): q1, four signed bytes a word, in order
    second: Tensor  # int32 (M, Kp / 4): q2
    scale: Tensor  # float32 (M, Kp / 32): d; NaN for a group that holds NaN or infinity
    sums: Tensor  # float32 (M, Kp / 16): of d (q1 + q2 / 254) over 16 values

    @classmethod
    def empty(cls, M: int, K: int, device: torch.device | str) -> "Activations":
        """Allocate M rows of K values, all zero."""
        Kp = -(-K // PAD) * PAD

        def zeros(width: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(M, width, dtype=dtype, device=device)

        words = zeros(Kp // 4, torch.int32), zeros(Kp // 4, torch.int32)
        return cls(zeros(Kp, torch.float32), *words, zeros(Kp // 32, torch.float32), zeros(Kp // 16, torch.float32))


@triton.jit
def two_terms(x):
    """Split groups x (R, 32) float32 into q1, q2 (R, 32) int8, scale (R,) and sums (R, 2) float32.

    The largest magnitude is found among bit patterns, whose order puts infinity and NaN on top, so that no NaN is
    passed over."""
    top = tl.max(x.to(tl.int32, bitcast=True) & SIGN, 1)
    largest = top.to(tl.float32, bitcast=True)
    scale = tl.where(top < INFINITY, tl.where(top < TINY, 0.0, largest * (1.0 / 127.0)), NAN)
    inverse = tl.div_rn(127.0, tl.where(top < TINY, float("inf"), largest))  # 0 for a group that counts as zero
    y = x * inverse[:, None]
    integer = y + MAGIC  # q1 is its lowest byte
    rounded = integer - MAGIC
    rest = (y - rounded) * 254.0 + MAGIC
    terms = (rounded + (rest - MAGIC) * (1.0 / 254.0)).reshape(x.shape[0], 2, 16)
    sums = tl.sum(terms, 2) * scale[:, None]
    return _low_byte(integer), _low_byte(rest), scale, sums


@triton.jit
def _low_byte(x):
    return x.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def write_terms(y, group, inside, x, first, second, scale, sums):
    """Write y (R, 32) as groups `group` (R,), counted over all rows, of the Activations whose tensors follow.

    Only the groups where `inside` (R,) holds are written."""
    q1, q2, d, s = two_terms(y)
    at = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    half = group[:, None] * 2 + tl.arange(0, 2)[None, :]
    mask = inside[:, None]
    tl.store(x + at, y, mask)
    tl.store(first.to(tl.pointer_type(tl.int8)) + at, q1, mask)
    tl.store(second.to(tl.pointer_type(tl.int8)) + at, q2, mask)
    tl.store(scale + group, d, inside)
    tl.store(sums + half, s, mask)


@triton.jit
def _quantise(source, x, first, second, scale, sums, K: tl.constexpr, Kp: tl.constexpr, PDL: tl.constexpr):
    """Quantise 8 groups of a row."""
    row, group = tl.program_id(1), tl.program_id(0) * 8 + tl.arange(0, 8)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if K == Kp:
        y = tl.load(source + row * K + column)
    else:
        y = tl.load(source + row * K + column, column < K, other=0.0)
    write_terms(y, row * (Kp // GROUP) + group, group < Kp // GROUP, x, first, second, scale, sums)


@triton.jit
def _rms(h, eps, D: tl.constexpr):
    """Return the factor that brings h, D values of one row, to unit mean square."""
    return tl.rsqrt(tl.sum(h * h) * (1.0 / D) + eps)


@triton.jit
def _rms_norm_quantise(
    source, gain, add, add_gain, eps, x, first, second, scale, sums, D: tl.constexpr, Kp: tl.constexpr,
    GROUPS: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Normalise a row and quantise it; with ADD, first add the normalised row of `add` to it, in place."""
    row, group = tl.program_id(0), tl.arange(0, GROUPS)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = column < D
    g = tl.load(gain + column, inside, other=0.0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    h = tl.load(source + row * D + column, inside, other=0.0)
    if ADD:
        branch = tl.load(add + row * D + column, inside, other=0.0)
        branch_gain = tl.load(add_gain + column, inside, other=0.0)
        h += branch * _rms(branch, eps, D) * branch_gain
        tl.store(source + row * D + column, h, inside)
    y = h * _rms(h, eps, D) * g
    write_terms(y, row * (Kp // GROUP) + group, group < Kp // GROUP, x, first, second, scale, sums)


@triton.jit
def _rms_norm(
    source, gain, out, eps, R, outer: tl.constexpr, inner: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalise ROWS rows; row r lies at (r // H) * outer + (r % H) * inner."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row[:, None] < R) & (column < D)
    start = (row // H).to(tl.int64) * outer + (row % H) * inner
    h = tl.load(source + start[:, None] + column, inside, other=0.0)
    g = tl.load(gain + column, column < D, other=0.0)
    factor = tl.rsqrt(tl.sum(h * h, 1) * (1.0 / D) + eps)
    tl.store(out + row.to(tl.int64)[:, None] * D + column, h * factor[:, None] * g, inside)


def quantise(x: Tensor, out: Activations | None = None, *, pdl: bool = False) -> Activations:
    """Quantise x, float32 (M, K), into `out`.  Raises ValueError."""
    _check_rows("x", x)
    (M, K), out = x.shape, _target(x, out)
    Kp = out.x.shape[1]
    grid, tensors = (Kp // 256, M), (out.x, out.first, out.second, out.scale, out.sums)
    _quantise[grid](x, *tensors, K=K, Kp=Kp, PDL=pdl and REAL, num_warps=1, **launch(pdl))
    return out


def rms_norm_quantise(
    x: Tensor, gain: Tensor, eps: float, out: Activations | None = None, *,
    add: Tensor | None = None, add_gain: Tensor | None = None, pdl: bool = False,
) -> Activations:  # fmt: skip
    """Quantise rms_norm(x) * gain, x float32 (M, D), into `out`.

    With `add` (M, D) and `add_gain` (D,), x += rms_norm(add) * add_gain comes first, and x itself is changed: the norm
    behind a branch that Gemma 3 has. Raises ValueError."""
    _check_rows("x", x)
    _check_gain("gain", gain, x)
    if (add is None) != (add_gain is None):
        raise ValueError("add_gain: expected together with add, or neither")
    if add is not None and add_gain is not None:
        _check_rows("add", add)
        _check_gain("add_gain", add_gain, x)
        if add.shape != x.shape:
            raise ValueError(f"add: shape {tuple(add.shape)}, expected {tuple(x.shape)} as x")
    (M, D), out = x.shape, _target(x, out)
    groups, Kp = _groups(D), out.x.shape[1]
    _rms_norm_quantise[(M,)](
        x, gain, add if add is not None else x, add_gain if add_gain is not None else gain, eps, out.x, out.first,
        out.second, out.scale, out.sums, D=D, Kp=Kp, GROUPS=groups, ADD=add is not None, PDL=pdl and REAL,
        num_warps=_warps(groups), **launch(pdl),
    )  # fmt: skip
    return out


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * gain over the last axis, float32 as x; rows may lie apart.

    x (R, D) or (T, H, D), the last axis without gaps. Raises ValueError."""
    if x.dtype != torch.float32 or x.ndim not in (2, 3) or x.stride(-1) != 1:
        raise ValueError(
            f"x: {x.dtype} {tuple(x.shape)} {x.stride()}, expected float32 (R, D) or (T, H, D) without gaps"
        )
    _check_gain("gain", gain, x)
    out, D, H = torch.empty(x.shape, dtype=x.dtype, device=x.device), x.shape[-1], x.shape[1] if x.ndim == 3 else 1
    R, block = x.numel() // D, triton.next_power_of_2(D)
    rows = _rows(block)
    _rms_norm[(triton.cdiv(R, rows),)](
        x, gain, out, eps, R, outer=x.stride(0), inner=x.stride(1) if x.ndim == 3 else 0, H=H, D=D, ROWS=rows,
        BLOCK=block, num_warps=_warps(rows * block // 32),
    )  # fmt: skip
    return out


def _groups(D: int) -> int:
    """Return how many groups the tile of a whole row has."""
    return triton.next_power_of_2(-(-D // PAD) * PAD) // 32


def _warps(groups: int) -> int:
    """Return a number of warps that leaves a thread 16 values, from 4 to 16."""
    return min(max(groups // 16, 4), 16)


def _rows(block: int) -> int:
    """Return how many rows of `block` values a program of `_rms_norm` takes."""
    return max(2048 // block, 1)


def launch(pdl: bool) -> dict[str, bool]:
    """Return the launch options of a kernel that may begin before the one in front of it has ended."""
    return {"launch_pdl": True} if pdl else {}


def _check_rows(name: str, x: Tensor) -> None:
    if x.dtype != torch.float32 or x.ndim != 2 or not x.is_contiguous():
        raise ValueError(f"{name}: {x.dtype} {tuple(x.shape)} {x.stride()}, expected contiguous float32 (M, K)")


def _check_gain(name: str, gain: Tensor, x: Tensor) -> None:
    if gain.dtype != torch.float32 or gain.shape != x.shape[-1:] or not gain.is_contiguous():
        raise ValueError(f"{name}: {gain.dtype} {tuple(gain.shape)}, expected contiguous float32 ({x.shape[-1]},)")


def _target(x: Tensor, out: Activations | None) -> Activations:
    """Return `out`, or new Activations for x."""
    if out is None:
        return Activations.empty(x.shape[0], x.shape[1], x.device)
    if out.x.shape != (x.shape[0], -(-x.shape[1] // PAD) * PAD):
        raise ValueError(f"out: rows {tuple(out.x.shape)}, expected {tuple(x.shape)} padded to a multiple of {PAD}")
    return out


def variants() -> Iterator[Variant]:
    """List what differs in machine code: LLaVA-1.5-7B's width and MLP width, and Gemma 3's norms (4B, 256 a head)."""
    f, i = "*fp32", "*i32"
    target = {"x": f, "first": i, "second": i, "scale": f, "sums": f}
    for K, pdl in ((4096, True), (11008, False)):
        constants = {"K": K, "Kp": -(-K // PAD) * PAD, "PDL": pdl}
        yield Variant(f"quantise {K}{' pdl' * pdl}", _quantise, {"source": f, **target}, constants, warps=1)
    for D, add, pdl in ((4096, False, True), (2560, True, False)):
        types = {"source": f, "gain": f, "add": f, "add_gain": f, "eps": "fp32", **target}
        constants = {"D": D, "Kp": -(-D // PAD) * PAD, "GROUPS": _groups(D), "ADD": add, "PDL": pdl}
        name = f"rms_norm_quantise {D}{' add' * add}{' pdl' * pdl}"
        yield Variant(name, _rms_norm_quantise, types, constants, warps=_warps(_groups(D)))
    for D, H in ((256, 4), (4096, 1)):
        block = triton.next_power_of_2(D)
        types = {"source": f, "gain": f, "out": f, "eps": "fp32", "R": "i32"}
        constants = {"outer": 3 * H * D, "inner": D, "H": H, "D": D, "ROWS": _rows(block), "BLOCK": block}
        yield Variant(f"rms_norm {D}", _rms_norm, types, constants, warps=_warps(_rows(block) * block // 32))
