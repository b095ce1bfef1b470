"""Cut the keys of a head into slices, one a program, and merge what they find.

For each query head a slice keeps a largest score, a total of weights and a sum of values; two slices merge as Milakov,
Gimelshein 2018 do, https://arxiv.org/abs/1805.02867, equation 4. The program that finishes last merges all of its head,
in the order of the slices whatever the order they finished in, so the same input gives the same bits.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_ROWS = 16
ROWS = tl.constexpr(MOST_ROWS)  # of a tile of query heads: the fewest that tl.dot multiplies
NONE = tl.constexpr(float("-inf"))
PROGRAMS = 3  # that a multiprocessor holds at once
MOST_SLICES = 64  # more would cost the merge, which one program does, what they save


@dataclass(frozen=True, slots=True)
class Scratch:
    """Results of the slices, for any number of steps and layers one after the other on one stream. G = H / Hkv."""

    counters: Tensor  # int32 (Hkv,): slices that have finished; zero between launches
    tops: Tensor  # float32 (Hkv, slices, G): the largest score, in powers of two
    totals: Tensor  # float32 (Hkv, slices, G): the sum of 2^(score - top)
    partial: Tensor  # float32 (Hkv, slices, G, dh): the sum of 2^(score - top) * value

    @classmethod
    def make(
        cls, heads: tuple[int, int], head_size: int, device: torch.device | str, slices: int | None = None
    ) -> "Scratch":
        """Allocate room for `heads` (H, Hkv), by default with slices that fill the device."""
        H, Hkv = heads
        shape = Hkv, slices or slices_of(Hkv, _multiprocessors(torch.device(device))), H // Hkv
        counters = torch.zeros(Hkv, dtype=torch.int32, device=device)
        return cls(counters, *(torch.empty(*shape, *rest, device=device) for rest in ((), (), (head_size,))))


def _multiprocessors(device: torch.device) -> int:
    """Return how many the device has; Triton's interpreter, which runs one program after another, is given 4."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def slices_of(Hkv: int, multiprocessors: int) -> int:
    """Return how many slices a head is cut into; two at least, one for the new token."""
    return min(max(PROGRAMS * multiprocessors // Hkv, 2), MOST_SLICES)


@triton.jit
def keep(
    at, top, total, y, tops, totals, partial, GROUP: tl.constexpr, DH: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """Store the result of slice `at`, counted over all heads."""
    row, c = tl.arange(0, ROWS), tl.arange(0, P)
    tl.store(tops + at * GROUP + row, top, row < GROUP)
    tl.store(totals + at * GROUP + row, total, row < GROUP)
    place, inside = (at * GROUP + row)[:, None] * DH + c[None, :], (row < GROUP)[:, None] & (c < DH)[None, :]
    tl.store(partial + place, y, inside)


@triton.jit
def is_last(counter, used):
    """Count this slice as finished and return whether it is the last; then set the counter back to zero.

    The barrier orders the stores of all threads before the atomic, which one thread performs. Its release publishes
    them to the device. Its acquire makes visible to this thread what earlier slices published, and to the others by the
    barrier behind which Triton hands them the old count. The loads of the merge stand behind a branch on that count, so
    none can come earlier; and none can find an older line in L1, which the acquire empties and ".cg" does not ask."""
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == used - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def _places(head, first, used, row, N: tl.constexpr, GROUP: tl.constexpr, SLICES: tl.constexpr):
    """Return where N slices of a head, from `first` on, keep their rows (N, rows), and which are in use (N, 1)."""
    part = first + tl.arange(0, N)[:, None]
    return (head * SLICES + part) * GROUP + row[None, :], part < used


@triton.jit
def merge(
    head, used, tops, totals, partial, GROUP: tl.constexpr, TILE: tl.constexpr, DH: tl.constexpr, P: tl.constexpr,
    SLICES: tl.constexpr, SPAN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Return the head's rows (TILE, P) from its first `used` slices; rows behind GROUP repeat the last.

    A trip adds CHUNK slices while the loads of the next three are in flight."""
    row, c = tl.minimum(tl.arange(0, TILE), GROUP - 1), tl.arange(0, P)[None, None, :]
    at, there = _places(head, 0, used, row, SPAN, GROUP, SLICES)
    high = tl.load(tops + at, there, other=NONE, cache_modifier=".cg")
    total = tl.load(totals + at, there, other=0.0, cache_modifier=".cg")
    top = tl.max(high, 0)
    total = tl.sum(total * tl.exp2(high - top[None, :]), 0)
    y = tl.zeros((TILE, P), tl.float32)
    for start in tl.range(0, used, CHUNK, num_stages=4):
        place, real = _places(head, start, used, row, CHUNK, GROUP, SLICES)
        weight = tl.exp2(tl.load(tops + place, real, other=NONE, cache_modifier=".cg") - top[None, :])
        inside = real[:, :, None] & (c < DH)
        values = tl.load(partial + place[:, :, None] * DH + c, inside, other=0.0, cache_modifier=".cg")
        y += tl.sum(values * weight[:, :, None], 0)
    return y * (1.0 / total)[:, None]
