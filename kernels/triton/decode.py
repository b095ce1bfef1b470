"""Attend from one new token: everything between the qkv product and the output product, in one launch.

The cache is read once, 4 dh bytes for each key and key/value head; qkv and partial results are some 100 KB in the L2
cache. So what counts is to keep loads of the cache in flight, and to do little before the first and behind the last. A
trip reads up to 32 KB by asynchronous 16-byte copies, two trips ahead. With head size 128 it takes 1.3 instructions a
byte, 101 registers a thread and 70 KB of shared memory: three programs a multiprocessor.
- The grid is key/value heads x slices. Their number is fixed when Scratch is made, because a CUDA graph records the
  launch while the position changes on the device. Slice 0 takes the new token; the others share the keys before it, in
  multiples of BLOCK, and those that get none end at once.
- The query heads of a key/value head are the rows of one tile, padded to the 16 rows that a tensor core takes.
- Slice 0 normalises, turns, rounds and stores the new key and value, and attends to them as stored. No other program
  reads that row, so none waits for it.
- The last program of a head to finish merges its slices and writes the head's Activations (`slices`), as in
  https://pytorch.org/blog/flash-decoding/, 2023, but without a second launch.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..planes import PAD
from .activations import Activations, quantise, write_terms
from .slices import MOST_ROWS, NONE, ROWS, Scratch, is_last, keep, merge, slices_of
from .variant import REAL, Variant

LAUNCH = {"num_warps": 4, "num_stages": 3}


@triton.jit
def _heads(
    source, gain, cos, sin, eps, HEADS: tl.constexpr, TILE: tl.constexpr, DH: tl.constexpr, P: tl.constexpr,
    HALVES: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """Load HEADS heads, normalise them with NORMS and turn them: float16 (TILE, P).

    The other channel of a pair is loaded, too, rather than taken from another thread: a line of L1 serves both. Every
    load has the whole tile's mask, and so its shape and its layout: no value is passed between threads."""
    head, c = tl.arange(0, TILE)[:, None], tl.arange(0, P)[None, :]
    inside = (head < HEADS) & (c < DH)
    other, pair, sign = c ^ 1, c // 2, c % 2 * 2 - 1
    if HALVES:
        other, pair, sign = (c + DH // 2) % DH, c % (DH // 2), tl.where(c < DH // 2, -1, 1)
    x = tl.load(source + head * DH + c, inside, other=0.0)
    y = tl.load(source + head * DH + other, inside, other=0.0)
    if NORMS:
        factor = tl.rsqrt(tl.sum(x * x, 1) * (1.0 / DH) + eps)[:, None]
        x *= factor * tl.load(gain + c, inside, other=0.0)
        y *= factor * tl.load(gain + other, inside, other=0.0)
    cosine, sine = tl.load(cos + pair, inside, other=0.0), tl.load(sin + pair, inside, other=0.0)
    return (x * cosine + y * (sine * sign)).to(tl.float16)


@triton.jit
def _append(
    qkv, gain, cos, sin, eps, keys, values, HKV: tl.constexpr, DH: tl.constexpr, P: tl.constexpr,
    HALVES: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """Write the new key, at which qkv points, and its value to the row of the cache at which keys and values point.

    Behind the barrier all threads of this program may read the row."""
    c = tl.arange(0, P)[None, :]
    k = _heads(qkv, gain, cos, sin, eps, 1, 1, DH, P, HALVES, NORMS)
    v = tl.load(qkv + HKV * DH + c, c < DH, other=0.0)
    tl.store(keys + c, k, c < DH)
    tl.store(values + c, v.to(tl.float16), c < DH)
    tl.debug_barrier()


@triton.jit
def _attend(
    q, keys, values, key_row, value_row, first, end, scale, DH: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr
):
    """Return the softmax over keys first..end-1 of a head: its largest score and total (ROWS,), and values (ROWS, P).

    The total is of the rounded weights that the values are multiplied by. There is at least one key."""
    c = tl.arange(0, P)
    top, sums = tl.full((ROWS,), NONE, tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    y = tl.zeros((ROWS, P), tl.float32)
    for start in tl.range(first, end, BLOCK):
        key = start + tl.arange(0, BLOCK)
        inside = key < end
        k = tl.load(keys + key[None, :] * key_row + c[:, None], inside[None, :] & (c < DH)[:, None], other=0.0)
        v = tl.load(values + key[:, None] * value_row + c[None, :], inside[:, None] & (c < DH)[None, :], other=0.0)
        scores = tl.where(inside[None, :], tl.dot(q, k) * scale, NONE)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None]).to(tl.float16)
        fade = tl.exp2(top - higher)[:, None]
        sums = sums * fade + weights.to(tl.float32)
        y = tl.dot(weights, v, y * fade)
        top = higher
    return top, tl.sum(sums, 1), y


@triton.jit
def _write(
    y, head, x, first, second, scale, sums, GROUP: tl.constexpr, TILE: tl.constexpr, DH: tl.constexpr, P: tl.constexpr
):
    """Write rows y (TILE, P) of a head as Activations, or x alone where a group of 32 spans two heads."""
    if DH % 32 == 0:
        i = tl.arange(0, TILE * P // 32)
        row, group = i // (P // 32), i % (P // 32)
        inside = (row < GROUP) & (group < DH // 32)
        group += (head * GROUP + row) * (DH // 32)
        write_terms(y.reshape(TILE * P // 32, 32), group, inside, x, first, second, scale, sums)
    else:
        row, c = tl.arange(0, TILE)[:, None], tl.arange(0, P)[None, :]
        tl.store(x + (head * GROUP + row) * DH + c, y, (row < GROUP) & (c < DH))


@triton.jit
def _decode(
    qkv, keys, values, position, cos, sin, q_gain, k_gain, scale, eps, key_head, key_row, value_head, value_row,
    counters, tops, totals, partial, out, first, second, out_scale, sums,
    GROUP: tl.constexpr, TILE: tl.constexpr, HKV: tl.constexpr, DH: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
    SLICES: tl.constexpr, SPAN: tl.constexpr, CHUNK: tl.constexpr, WINDOW: tl.constexpr, HALVES: tl.constexpr,
    NORMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Attend for one key/value head over one slice of its keys; the last program of the head merges and writes."""
    head, part = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    here = tl.load(position)
    oldest = tl.maximum(here - WINDOW + 1, 0) if WINDOW else 0
    share = tl.maximum(tl.cdiv(here - oldest, (SLICES - 1) * BLOCK), 1) * BLOCK
    used = 1 + tl.cdiv(here - oldest, share)
    if part < used:
        cos += here * (DH // 2)
        sin += here * (DH // 2)
        q = _heads(qkv + head * GROUP * DH, q_gain, cos, sin, eps, GROUP, ROWS, DH, P, HALVES, NORMS)
        keys += head.to(tl.int64) * key_head
        values += head.to(tl.int64) * value_head
        start = oldest + (part - 1) * share
        end = tl.minimum(start + share, here)
        if part == 0:
            start, end = here, here + 1
            k, v = keys + here * key_row, values + here * value_row
            _append(qkv + (HKV * GROUP + head) * DH, k_gain, cos, sin, eps, k, v, HKV, DH, P, HALVES, NORMS)
        top, total, y = _attend(q, keys, values, key_row, value_row, start, end, scale, DH, P, BLOCK)
        keep(head * SLICES + part, top, total, y, tops, totals, partial, GROUP, DH, P)
        if is_last(counters + head, used):
            merged = merge(head, used, tops, totals, partial, GROUP, TILE, DH, P, SLICES, SPAN, CHUNK)
            _write(merged, head, out, first, second, out_scale, sums, GROUP, TILE, DH, P)


def decode_attention(
    qkv: Tensor, keys: Tensor, values: Tensor, position: Tensor, cos: Tensor, sin: Tensor, out: Activations,
    scratch: Scratch, *, heads: tuple[int, int], scale: float, pairs: Literal["adjacent", "halves"],
    window: int | None = None, norms: tuple[Tensor, Tensor] | None = None, eps: float = 0.0, pdl: bool = False,
) -> None:  # fmt: skip
    """Attend from the token at `position` to itself and all before it, and write (1, H * dh) into `out`.

    qkv float32 (1, (H + 2 Hkv) * dh); keys, values float16 (Hkv, room, dh), in which row `position` is written; cos,
    sin float32 (room, dh / 2); position int32 (1,), on the device, so it is not checked here that it is below `room`.
    With `norms`, gains (dh,) of q and k, heads are normalised before they are turned. With a window only the last
    `window` positions are seen. Raises ValueError."""
    (H, Hkv), dh = heads, keys.shape[-1]
    _check_sizes(heads, keys, window)
    _check_tensors(qkv, keys, values, position, cos, sin, out, scratch, heads, norms)
    constants = _constants(heads, dh, scratch.tops.shape[1], window, pairs == "halves")
    gains = norms or (cos, cos)  # not read without norms
    _decode[(Hkv, constants["SLICES"])](
        qkv, keys, values, position, cos, sin, *gains, scale * math.log2(math.e), eps, *keys.stride()[:2],
        *values.stride()[:2], scratch.counters, scratch.tops, scratch.totals, scratch.partial, out.x, out.first,
        out.second, out.scale, out.sums, **constants, NORMS=norms is not None, PDL=pdl and REAL, **LAUNCH,
        **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
    if dh % 32:
        quantise(out.x[:, : H * dh], out, pdl=pdl)


def _constants(heads: tuple[int, int], dh: int, slices: int, window: int | None, halves: bool) -> dict[str, int]:
    """Return the sizes of a program: a trip reads up to 32 KB of the cache, and the merge 16 KB of results."""
    group, P = heads[0] // heads[1], max(triton.next_power_of_2(dh), 16)
    tile, span = triton.next_power_of_2(group), triton.next_power_of_2(slices)
    sizes = {"GROUP": group, "TILE": tile, "HKV": heads[1], "DH": dh, "P": P, "BLOCK": 32 if P > 128 else 64}
    chunk = min(max(4096 // (tile * P), 1), span)
    return sizes | {"SLICES": slices, "SPAN": span, "CHUNK": chunk, "WINDOW": window or 0, "HALVES": halves}


def _check_sizes(heads: tuple[int, int], keys: Tensor, window: int | None) -> None:
    (H, Hkv), dh = heads, keys.shape[-1]
    if keys.ndim != 3:
        raise ValueError(f"keys: shape {tuple(keys.shape)}, expected (Hkv, room, dh)")
    if H % Hkv or not 1 <= H // Hkv <= MOST_ROWS:
        raise ValueError(f"heads: {heads}, expected 1 to {MOST_ROWS} query heads for each key/value head")
    if dh % 2 or not 2 <= dh <= 256:
        raise ValueError(f"keys: head size {dh}, expected an even number up to 256")
    if window is not None and window < 1:
        raise ValueError(f"window: {window}, expected a positive number, or None")


def _check_tensors(
    qkv: Tensor, keys: Tensor, values: Tensor, position: Tensor, cos: Tensor, sin: Tensor, out: Activations,
    scratch: Scratch, heads: tuple[int, int], norms: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    (H, Hkv), (_, room, dh) = heads, keys.shape
    _expect("qkv", qkv, torch.float32, 1, (H + 2 * Hkv) * dh)
    _expect("position", position, torch.int32, 1)
    _expect("cos", cos, torch.float32, room, dh // 2)
    _expect("sin", sin, torch.float32, room, dh // 2)
    _expect("out", out.x, torch.float32, 1, -(-H * dh // PAD) * PAD)
    _expect("scratch", scratch.partial, torch.float32, Hkv, max(scratch.tops.shape[1], 2), H // Hkv, dh)
    for i, gain in enumerate(norms or ()):
        _expect(f"norms[{i}]", gain, torch.float32, dh)
    for name, cache in (("keys", keys), ("values", values)):
        _expect(name, cache, torch.float16, Hkv, room, dh, gaps=True)
        if cache.stride(2) != 1 or room * cache.stride(1) >= 2**31:
            raise ValueError(f"{name}: strides {cache.stride()}, expected (any, below 2^31 / {room}, 1)")


def _expect(name: str, x: Tensor, dtype: torch.dtype, *shape: int, gaps: bool = False) -> None:
    if x.dtype != dtype or x.shape != shape or not (gaps or x.is_contiguous()):
        raise ValueError(f"{name}: {x.dtype} {tuple(x.shape)} {x.stride()}, expected {dtype} {shape} without gaps")


def variants() -> Iterator[Variant]:
    """List LLaVA-1.5-7B's configuration, and other head sizes and groups, with slices for 132 multiprocessors."""
    models: tuple[tuple[str, tuple[int, int], int, int | None], ...] = (
        ("LLaVA-1.5-7B", (32, 32), 128, None),
        ("32 heads over 8", (32, 8), 128, None),
        ("head size 64", (16, 8), 64, None),
        ("Gemma 3 4B", (8, 4), 256, 1024),
    )
    floats = ("qkv", "cos", "sin", "q_gain", "k_gain", "tops", "totals", "partial", "out", "out_scale", "sums")
    types = dict.fromkeys(floats, "*fp32") | dict.fromkeys(("position", "counters", "first", "second"), "*i32")
    types |= {"keys": "*fp16", "values": "*fp16", "scale": "fp32", "eps": "fp32"}
    types |= dict.fromkeys(("key_head", "key_row", "value_head", "value_row"), "i32:16")
    for name, heads, dh, window in models:
        for pdl in (False, True)[: 2 if dh == 128 else 1]:
            constants = _constants(heads, dh, slices_of(heads[1], 132), window, window is not None)
            constants |= {"NORMS": window is not None, "PDL": pdl}
            yield Variant(f"decode {name}{' pdl' * pdl}", _decode, types, constants)
