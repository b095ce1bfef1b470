"""Attend by Triton with many queries at once, for prefill and towers; one query against a cache is decode.py's.

T queries, S keys, H query heads, Hkv key/value heads, dh head size. A program holds a block of queries of one head and
walks over the keys in tiles; scores stay in its registers (Dao 2023, https://arxiv.org/abs/2307.08691, algorithm 1).

Arithmetic. q, k, v and the weights before their division are float16, all sums float32, the exponent is 2^x with log2 e
in the scale. The scale multiplies float32 scores, in the FFMA that subtracts the maximum: in front of the product it
would cost as much, and float16 could overflow. q, k, v in float32 are rounded before the launch, not in the kernel: a
tile of keys is read by T / 128 programs, and q that a kernel converts goes to wgmma through registers (at head size 64
about 30 more, so that an SM holds one program instead of two).

Which keys. A query sees one range (`Sees.ranges`), so a mask is two comparisons. `Sees.reach` names the tiles that a
block sees at all, `Sees.common` those inside the range of all its queries, which need no mask: at head size 64 a trip
is 303 instructions, with a mask 459. The order of tiles is free, so one loop takes those that need it, on both sides,
and one the rest.

Cost by head size, from sm_90a's machine code (Triton 3.9): registers, then clocks of an SM that a trip costs a warp.
  64   128 x 64, 8 warps, 2 programs an SM: 123 registers; tensor 64, exponentials 68, issue 76, masked 115
  128  128 x 64, 8 warps: 179 registers; tensor 128, exponentials 68, issue 94, masked 134
  256  64 x 32, 4 warps, 2 programs an SM: 231 registers; tensor 128, exponentials 36, issue 108, masked 134
Prediction: issue binds at 64, the tensor cores above. A program takes 128 queries because tiles come from L2: they ask
32 bytes an SM and clock of tensor work, about what L2 gives. At 256 models have few heads, and smaller programs fill
the card. At 128, tiles of 128 x 128 would issue a quarter less, but spill on sm_100; at 256, of 64 x 64 spill on sm_80.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from llava_ref.ops.sees import Sees

from .fitting import launch_fitting
from .variant import Variant


class Blocking(NamedTuple):
    """How the work on one head is cut."""

    queries: int  # of a program
    keys: int  # of a tile
    warps: int
    stages: int  # tiles of keys and values in shared memory


BLOCKINGS = {64: Blocking(128, 64, 8, 3), 128: Blocking(128, 64, 8, 3), 256: Blocking(64, 32, 4, 2)}
"""By the largest head size that takes it."""


def blocking(head_size: int) -> Blocking:
    """Return the blocking of a head size. Raises ValueError for one that no kernel takes."""
    if head_size % 8 or not 8 <= head_size <= 256:
        raise ValueError(f"attention: head size: {head_size}, expected a multiple of 8 from 8 to 256")
    return next(found for largest, found in BLOCKINGS.items() if head_size <= largest)


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Which keys T queries see (`ops.sees.Sees`), on the kernel's device, for one head size."""

    n_keys: int
    ranges: Tensor  # int32 (T, 2): the first and the behind-last key that a query sees
    reach: Tensor  # int32 (blocks, 2): the keys that any query of a block sees
    common: Tensor  # int32 (blocks, 2): the keys that every query of a block sees

    @classmethod
    def of(cls, sees: Sees, head_size: int, device: str | torch.device) -> "AttentionPlan":
        """Upload a description; made once a pass, used by every layer. Raises ValueError as `Sees.ranges`."""
        block = blocking(head_size).queries
        pairs = sees.ranges(), sees.reach(block), sees.common(block)
        ranges, reach, common = (torch.from_numpy(pair.astype(np.int32)).to(device) for pair in pairs)
        return cls(len(sees.key), ranges, reach, common)


@triton.jit
def _tile(at, rows, columns, stride, n_rows, HEAD: tl.constexpr, MASK: tl.constexpr):
    """Load rows of one head, zeros behind the last row (with MASK) and behind the head.  (ROWS, PAD) float16"""
    at += rows[:, None] * stride + columns[None, :]
    if MASK:
        return tl.load(at, mask=(rows < n_rows)[:, None] & (columns < HEAD)[None, :], other=0.0)
    elif HEAD < columns.shape[0]:
        return tl.load(at, mask=(columns < HEAD)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _add(sums, top, total, scores, values, scale):
    """Add a tile to the softmax so far: weighted sums of values, the largest exponent, the sum of weights.

    `top` begins at -1e30 instead of -inf: a row that sees nothing of a tile gets weights 2^(-inf + 1e30) = 0."""
    new = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - new[:, None])
    decay = tl.exp2(top - new)
    sums = tl.dot(weights.to(tl.float16), values, sums * decay[:, None])
    return sums, new, total * decay + tl.sum(weights, 1)


# Sizes and strides stay unspecialised, or a multiple of 16 would compile a second form. Strides count 8 elements,
# from which the compiler knows that rows are 16-byte aligned.
@triton.jit(do_not_specialize=["T", "S", "q_row", "q_head", "k_row", "k_head", "v_row", "v_head"])
def _attention(
    q, keys, values, out, ranges, reach, common, T, S, scale, q_row, q_head, k_row, k_head, v_row, v_head,
    HEAD: tl.constexpr, PAD: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr
):  # fmt: skip
    head, block = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)  # the blocks that see most go first
    rows, columns, tile = block * QUERIES + tl.arange(0, QUERIES), tl.arange(0, PAD), tl.arange(0, KEYS)
    t = tl.minimum(rows, T - 1)
    queries = _tile(q + head * (8 * q_head), t, columns, 8 * q_row, T, HEAD, False)
    keys += head // GROUP * (8 * k_head)
    values += head // GROUP * (8 * v_head)
    start, stop = tl.load(reach + 2 * block) // KEYS * KEYS, tl.load(reach + 2 * block + 1)
    plain_stop = tl.load(common + 2 * block + 1) // KEYS * KEYS
    plain = tl.minimum(tl.cdiv(tl.load(common + 2 * block), KEYS) * KEYS, plain_stop)
    sums, total = tl.zeros((QUERIES, PAD), tl.float32), tl.zeros((QUERIES,), tl.float32)
    top = tl.full((QUERIES,), -1e30, tl.float32)
    first, end = tl.load(ranges + 2 * t)[:, None], tl.load(ranges + 2 * t + 1)[:, None]
    before = (plain - start) // KEYS
    for i in range(0, before + tl.cdiv(stop - plain_stop, KEYS)):
        key = tl.where(i < before, start + i * KEYS, plain_stop + (i - before) * KEYS) + tile
        k = _tile(keys, key, columns, 8 * k_row, S, HEAD, True)
        v = _tile(values, key, columns, 8 * v_row, S, HEAD, True)
        scores = tl.dot(queries, tl.trans(k))
        scores = tl.where((key[None, :] >= first) & (key[None, :] < end), scores, float("-inf"))
        sums, top, total = _add(sums, top, total, scores, v, scale)
    for at in range(plain, plain_stop, KEYS):
        k = _tile(keys, at + tile, columns, 8 * k_row, S, HEAD, False)
        v = _tile(values, at + tile, columns, 8 * v_row, S, HEAD, False)
        sums, top, total = _add(sums, top, total, tl.dot(queries, tl.trans(k)), v, scale)
    out += rows[:, None] * (tl.num_programs(0) * HEAD) + head * HEAD + columns[None, :]
    tl.store(out, sums / total[:, None], mask=(rows < T)[:, None] & (columns < HEAD)[None, :])


def attention(
    q: Tensor, keys: Tensor, values: Tensor, scale: float, sees: AttentionPlan, out: Tensor | None = None
) -> Tensor:
    """Return softmax(q k^T * scale) v over the keys seen.  (T, H, dh) (S, Hkv, dh) (S, Hkv, dh) -> (T, H * dh) float32

    Query head h reads key/value head h // (H / Hkv). Rows and heads may have any strides, multiples of 8; what is not
    float16 is rounded to it, and is infinite beyond 65504. Raises ValueError where shapes, strides or the plan do not
    fit."""
    T, H, dh = q.shape
    out = torch.empty(T, H * dh, device=q.device) if out is None else out
    _check(q, keys, values, scale, sees, out)
    named = {"q": q.to(torch.float16), "keys": keys.to(torch.float16), "values": values.to(torch.float16)}
    strides = [n for name, x in named.items() for n in _strides(name, x)]
    cut = blocking(dh)
    seen = (sees.ranges, sees.reach, sees.common)
    arguments = (*named.values(), out, *seen, T, len(keys), scale * math.log2(math.e), *strides)
    constants = _constants(dh, H // keys.shape[1])
    launch_fitting(_attention, (H, len(sees.reach)), arguments, constants, warps=cut.warps, stages=cut.stages)
    return out


def _check(q: Tensor, keys: Tensor, values: Tensor, scale: float, sees: AttentionPlan, out: Tensor) -> None:
    (T, H, dh), Hkv = q.shape, keys.shape[1]
    blocks = -(-T // blocking(dh).queries)
    expected = {
        "keys": (keys, (sees.n_keys, Hkv, dh)),
        "values": (values, (sees.n_keys, Hkv, dh)),
        "sees.ranges": (sees.ranges, (T, 2)),
        "sees.reach": (sees.reach, (blocks, 2)),
        "out": (out, (T, H * dh)),
    }
    for name, (x, shape) in expected.items():
        if x.shape != shape:
            raise ValueError(f"attention: {name}: {tuple(x.shape)}, expected {shape}")
    if H % Hkv:
        raise ValueError(f"attention: keys: {Hkv} heads do not divide the {H} of q")
    if not scale > 0:
        raise ValueError(f"attention: scale: {scale}, expected a number above 0")
    if out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError("attention: out: expected contiguous float32")


def _strides(name: str, x: Tensor) -> tuple[int, int]:
    """Return the strides of rows and heads in units of 8 elements."""
    row, head, column = x.stride()
    if column != 1 or row % 8 or head % 8:
        raise ValueError(f"attention: {name}: strides {x.stride()}, expected multiples of 8, and 1 at last")
    if (x.shape[0] - 1) * row + x.shape[1] * head >= 1 << 31:
        raise ValueError(f"attention: {name}: shape {tuple(x.shape)} spans 2^31 elements or more")
    return row // 8, head // 8


def _constants(head_size: int, group: int) -> dict[str, int]:
    cut, pad = blocking(head_size), max(16, triton.next_power_of_2(head_size))
    return {"HEAD": head_size, "PAD": pad, "GROUP": group, "QUERIES": cut.queries, "KEYS": cut.keys}


TYPES = (
    {"q": "*fp16", "keys": "*fp16", "values": "*fp16", "out": "*fp32"}
    | dict.fromkeys(("ranges", "reach", "common"), "*i32")
    | {"T": "i32", "S": "i32", "scale": "fp32"}
    | dict.fromkeys(("q_row", "q_head", "k_row", "k_head", "v_row", "v_head"), "i32")
)


def variants() -> Iterator[Variant]:
    """Yield what LLaVA-1.5's and Gemma 3's towers (head sizes 64 and 72) and decoders (128 and 256) launch."""
    for head_size, group in ((64, 1), (72, 1), (128, 1), (256, 2)):
        cut, name = blocking(head_size), f"attention, head size {head_size}"
        yield Variant(name, _attention, TYPES, _constants(head_size, group), warps=cut.warps, stages=cut.stages)
