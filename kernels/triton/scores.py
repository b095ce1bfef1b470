"""Summarise one row of logits: whether all are finite, the id of the largest, and logsumexp.

One kernel reads 4 bytes a logit, and greedy decoding copies 12 bytes to the host for a token instead of 128 KB for
32,000 logits. A program reads 2048 logits, 16 a thread, and leaves four numbers; the program that arrives last, counted
by an atomic, merges them and sets the counter back to zero, so that a captured graph can replay the launch. The product
in front of this kernel left 32,000 logits in the L2 cache: latency, not bytes, is what it costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import INFINITY, NAN, SIGN, launch
from .variant import REAL, Variant

BLOCK = 2048
NONE = tl.constexpr(0x7FFFFFFF)


@dataclass(frozen=True, slots=True)
class Summary:
    """Results of `summarise`, and the memory that its programs share. All on the device."""

    finite: Tensor  # int32 (1,): 1 if every logit is finite, else 0
    best: Tensor  # int32 (1,): the id of the largest logit, the lowest among equals; NaN counts as the smallest
    total: Tensor  # float32 (1,): logsumexp; NaN unless all are finite
    counts: Tensor  # int32 (1 + 2 P,): programs that have arrived; then finite and best of each of P programs
    partial: Tensor  # float32 (2 P,): largest logit and sum of exp(logit - largest) of each

    @classmethod
    def empty(cls, V: int, device: torch.device | str) -> "Summary":
        """Allocate a summary of V logits."""
        P = triton.cdiv(V, BLOCK)
        finite, best, counts = (torch.zeros(n, dtype=torch.int32, device=device) for n in (1, 1, 1 + 2 * P))
        total, partial = (torch.zeros(n, dtype=torch.float32, device=device) for n in (1, 2 * P))
        return cls(finite, best, total, counts, partial)


@triton.jit
def _lowest(x, largest, ids):
    """Return the lowest of the ids whose x is `largest`."""
    return tl.min(tl.where(x == largest, ids, NONE), 0)


@triton.jit
def _shares(x, largest):
    """Return exp(x - largest), where nothing but -infinity may be the largest of an empty sum."""
    return tl.exp(x - tl.where(largest == float("-inf"), 0.0, largest))


@triton.jit
def _merge(finite, best, total, counts, partial, P: tl.constexpr, MERGE: tl.constexpr):
    """Merge what P programs found; .cg passes by this SM's own cache, which may hold an earlier token's."""
    program = tl.arange(0, MERGE)
    inside = program < P
    fine = tl.load(counts + 1 + program, inside, other=1, cache_modifier=".cg")
    ids = tl.load(counts + 1 + P + program, inside, other=NONE, cache_modifier=".cg")
    tops = tl.load(partial + program, inside, other=float("-inf"), cache_modifier=".cg")
    sums = tl.load(partial + P + program, inside, other=0.0, cache_modifier=".cg")
    top, all_fine = tl.max(tops, 0), tl.min(fine, 0)
    tl.store(finite, all_fine)
    tl.store(best, _lowest(tops, top, ids))
    tl.store(total, tl.where(all_fine == 1, top + tl.log(tl.sum(sums * _shares(tops, top), 0)), NAN))
    tl.store(counts, 0)


@triton.jit
def _summarise(
    logits, finite, best, total, counts, partial, V: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
    MERGE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Summarise BLOCK logits; the last program to arrive merges all P."""
    program = tl.program_id(0)
    ids = program * BLOCK + tl.arange(0, BLOCK)
    inside = ids < V
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(logits + ids, inside, other=float("-inf"))
    bits = x.to(tl.int32, bitcast=True) & SIGN
    x = tl.where(bits > INFINITY, float("-inf"), x)  # NaN
    largest = tl.max(x, 0)
    tl.store(counts + 1 + program, tl.min(((bits < INFINITY) | (ids >= V)).to(tl.int32), 0))
    tl.store(counts + 1 + P + program, _lowest(x, largest, ids))
    tl.store(partial + program, largest)
    tl.store(partial + P + program, tl.sum(_shares(x, largest), 0))
    tl.debug_barrier()  # what every thread has stored lies before the one thread's atomic
    if tl.atomic_add(counts, 1, sem="acq_rel", scope="gpu") == P - 1:
        _merge(finite, best, total, counts, partial, P, MERGE)


def summarise(logits: Tensor, out: Summary, *, pdl: bool = False) -> Summary:
    """Summarise logits, float32 (1, V), into `out`.  Raises ValueError."""
    if logits.dtype != torch.float32 or logits.ndim != 2 or logits.shape[0] != 1 or not logits.is_contiguous():
        raise ValueError(f"logits: {logits.dtype} {tuple(logits.shape)}, expected contiguous float32 (1, V)")
    V = logits.shape[1]
    P = triton.cdiv(V, BLOCK)
    if out.partial.shape != (2 * P,):
        raise ValueError(f"out: made for {out.partial.numel() // 2} programs, expected {P} for {V} logits")
    _summarise[(P,)](
        logits, out.finite, out.best, out.total, out.counts, out.partial, V=V, P=P, BLOCK=BLOCK,
        MERGE=triton.next_power_of_2(P), PDL=pdl and REAL, num_warps=4, **launch(pdl),
    )  # fmt: skip
    return out


def variants() -> Iterator[Variant]:
    """List LLaVA-1.5's vocabulary, 32,000 or so, and Gemma 3's, 262,208."""
    f, i = "*fp32", "*i32"
    for V, pdl in ((32000, True), (262208, False)):
        P = triton.cdiv(V, BLOCK)
        types = {"logits": f, "finite": i, "best": i, "total": f, "counts": i, "partial": f}
        constants = {"V": V, "P": P, "BLOCK": BLOCK, "MERGE": triton.next_power_of_2(P), "PDL": pdl}
        yield Variant(f"summarise {V}{' pdl' * pdl}", _summarise, types, constants)
