"""Cases for the kernels of a processor: what each computes, and what its definition gives in float64.

Shapes are small and odd: `selftest` runs them on the processor that it is on, tests under each set of instructions.
M rows of x, N rows and K columns of a matrix, T rows, S keys, H heads, Hkv key/value heads, dh head size.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from llava_ref.conformance.pairs.random_blocks import random_tensor
from llava_ref.ops.arrays import Activation, Pairs
from llava_ref.ops.torch_quants import decode

from .. import reference
from ..cases.case import EPS, FLOAT32, TERMS, Both, KernelCase, activated, rand
from .activations import CODES, GROUP, SUMS, RoundedRows, quantise
from .attention import attention
from .gates import gate
from .kv import append
from .launch import Launch, run
from .matvec import DENSE, FEW, SUPPORTED, matvec
from .norms import add, layer_norm, rms_norm
from .prompt_attention import prompt_attention
from .rope import rope
from .rows import rows, widened

INT8, PROMPT, BFLOAT16 = 1e-2, 2e-5, 5e-3
"""Largest relative RMS error: of a product of many rows, which 8 bits of an activation cost, or bfloat16; of attention
over float16 in two terms of bfloat16; of attention in bfloat16."""
THREADS = 2
TINY = 2.0**-126


def blocks(kind: str, N: int, K: int) -> tuple[Tensor, Tensor]:
    """Return a matrix of random blocks, and its weights in float64."""
    b = torch.from_numpy(random_tensor(kind, N, K, 1))
    return b, decode(b, kind).double()


def at(launch: Callable[..., Launch], *arrays: Tensor) -> Callable[..., Launch]:
    """Fill in the addresses of arrays, which the caller keeps."""
    return partial(launch, *(array.data_ptr() for array in arrays))


def nothing(*shape: int) -> Tensor:
    """Return memory for a result: NaN."""
    return torch.full(shape, torch.nan)


def done(launch: Launch, out: Tensor) -> Tensor:
    """Run a launch, and return what it wrote into."""
    run(launch, threads=THREADS)
    return out


def products() -> Iterator[KernelCase]:
    for kind in sorted(SUPPORTED):
        shapes = [(1, 37, 1280), (3, 5, 256), (FEW, 70, 2048)]
        shapes += [(2, 9, 588), (1, 3, 7)] if kind in DENSE else []
        shapes += [(2, 9, 576)] if kind.endswith(("_0", "_1", "NL")) or kind == "MXFP4" else []
        for M, N, K in shapes:
            run = partial(_multiplied, kind, M, N, K)
            yield KernelCase("matvec.matvec", f"{kind} {M} x {K} x {N}", FLOAT32 if kind in DENSE else TERMS, run)
        for M, N, K in (FEW + 1, 37, 1280), (70, 131, 512):
            sort = f"{kind} {M} x {K} x {N}"
            yield KernelCase("product.ManyRows", sort, INT8, partial(_many, kind, M, N, K))


def _multiplied(kind: str, M: int, N: int, K: int) -> Both:
    """Multiply with a bias and on top of what is there."""
    x, (b, w), out = rand(M, K, seed=2), blocks(kind, N, K), nothing(M, N)
    bias, more, rounded = rand(N, seed=3), rand(M, N, seed=4), RoundedRows.of(M, K)
    run(quantise(x.data_ptr(), K, rounded, M), threads=THREADS)
    given = x.data_ptr() if kind in DENSE else rounded
    launch = matvec(kind, b.data_ptr(), N, K, given, M, out.data_ptr(), bias.data_ptr(), more.data_ptr())
    return done(launch, out), reference.linear(x.double(), w, bias.double()) + more.double()


def _many(kind: str, M: int, N: int, K: int) -> Both:
    from .product import ManyRows

    x, (b, w) = rand(M, K, seed=2), blocks(kind, N, K)
    many = ManyRows(THREADS)
    return many.product(kind, b.data_ptr(), N, K, many.input(x)), reference.linear(x.double(), w)


def decoded() -> Iterator[KernelCase]:
    for kind in sorted(SUPPORTED):
        K = 588 if kind in DENSE else 1280
        yield KernelCase("rows.rows", kind, 0.0, partial(_rows, kind, K))
        yield KernelCase("rows.widened", kind, 0.0, partial(_widened, kind, K))


def _rows(kind: str, K: int) -> Both:
    (b, w), ids, out = blocks(kind, 9, K), torch.tensor([8, 0, 3, 3]), nothing(4, K)
    return done(rows(kind, b.data_ptr(), K, ids.data_ptr(), 4, out.data_ptr(), scale=0.5), out), w[ids] / 2


def _widened(kind: str, K: int) -> Both:
    (b, w), out = blocks(kind, 9, K), nothing(7, K).to(torch.bfloat16)
    want = torch.where(w.abs() < TINY, 0.0, w)[2:].float().to(torch.bfloat16).double()
    return done(widened(kind, b.data_ptr(), K, 2, 7, out.data_ptr()), out), want


def activations() -> Iterator[KernelCase]:
    for M, K in (1, 96), (3, 1056), (8, 4096):
        yield KernelCase("activations.quantise", f"{M} x {K}", TERMS, partial(_rounded, M, K))


def _rounded(M: int, K: int) -> Both:
    """Return the rows that the codes stand for, and beside each row the sums of 16."""
    x, out = rand(M, K), RoundedRows.of(M, K)
    run(quantise(x.data_ptr(), K, out, M), threads=THREADS)
    first, n = out.address - out.room.ctypes.data, out.groups
    room = torch.from_numpy(out.room)[first : first + M * out.row_bytes].view(M, -1)
    codes = room[:, : n * CODES].view(torch.int16).view(M, n, GROUP // 64, 2, 32).transpose(-1, -2)
    sums = room[:, n * CODES : n * (CODES + SUMS)].view(torch.float32)
    scale = room[:, n * (CODES + SUMS) : n * (CODES + SUMS) + 4 * n].view(torch.float32)
    padded = torch.nn.functional.pad(x, (0, n * GROUP - K)).double()
    found = (codes.reshape(M, n, GROUP) * scale.double()[..., None]).view(M, -1)
    return torch.cat((found, sums), 1), torch.cat((padded, padded.view(M, -1, 16).sum(-1)), 1)


def by_row() -> Iterator[KernelCase]:
    for T, width in (1, 37), (3, 1056), (40, 4096):
        for name in "rms_norm", "layer_norm":
            yield KernelCase(f"norms.{name}", f"{T} x {width}", FLOAT32, partial(_normed, name, T, width))
        yield KernelCase("norms.add", f"{T} x {width}", FLOAT32, partial(_added, T * width))
    for kind in get_args(Activation):
        for up in True, False:
            run = partial(_gated, kind, up)
            yield KernelCase("gates.gate", kind + (", gated" if up else ""), FLOAT32, run)
    for pairs in get_args(Pairs):
        yield KernelCase("rope.rope", pairs, FLOAT32, partial(_turned, pairs))


def _normed(name: str, T: int, width: int) -> Both:
    x, gain, bias, out = 3 * rand(T, width) + 1, rand(width, seed=1), rand(width, seed=2), nothing(T, width)
    if name == "rms_norm":
        want = reference.rms_norm(x.double(), gain.double(), EPS)
        return done(at(rms_norm, x, gain, out)(T, width, EPS), out), want
    want = reference.layer_norm(x.double(), gain.double(), bias.double(), EPS)
    return done(at(layer_norm, x, gain, bias, out)(T, width, EPS), out), want


def _added(n: int) -> Both:
    x, y, out = rand(n), rand(n, seed=1), nothing(n)
    return done(at(add, x, y, out)(n), out), x.double() + y.double()


def _gated(kind: Activation, gated: bool) -> Both:
    x, up, out = 4 * rand(5151), rand(5151, seed=1), nothing(5151)
    want = activated(kind, x) * (up.double() if gated else 1)
    return done(gate(x.data_ptr(), up.data_ptr() if gated else 0, out.data_ptr(), 5151, kind), out), want


def _turned(pairs: Pairs) -> Both:
    T, H, dh = 7, 3, 72
    x, angle, out = rand(T, H, dh), 100 * rand(50, dh // 2, seed=1), nothing(T, H, dh)
    cos, sin, positions = angle.cos(), angle.sin(), torch.arange(T) * 7
    launch = at(rope, x, out, cos, sin, positions)(T, H, dh, pairs)
    return done(launch, out), reference.rope(x.double(), cos[positions].double(), sin[positions].double(), pairs)


def attending() -> Iterator[KernelCase]:
    for T, H, dh in (1, 3, 64), (5, 2, 72):
        yield KernelCase("kv.append", f"{T} x {H} x {dh}", 0.0, partial(_appended, T, H, dh))
    for H, Hkv, dh in (4, 4, 64), (9, 3, 72), (7, 1, 128), (4, 2, 256):
        for ranges in [(0, 1)], [(5, 40), (0, 130)], [(700, 3000)]:
            run = partial(_attended, H, Hkv, dh, ranges)
            yield KernelCase("attention.attention", f"{H} over {Hkv} heads of {dh}, {ranges}", FLOAT32, run)


def many_attending() -> Iterator[KernelCase]:
    for H, Hkv, dh in (3, 3, 64), (4, 2, 72), (3, 1, 128):
        for T, S, window in (9, 9, None), (70, 150, None), (150, 150, 40):
            sort = f"{H} over {Hkv} heads of {dh}, {T} behind {S - T}, window {window}"
            run = partial(_prompted, H, Hkv, dh, T, S, window)
            yield KernelCase("prompt_attention.prompt_attention", sort, PROMPT, run)
        run = partial(_looked, H, Hkv, dh)
        yield KernelCase("prompt_attention.prompt_attention", f"{H} over {Hkv} heads of {dh}, a picture", BFLOAT16, run)


def _prompted(H: int, Hkv: int, dh: int, T: int, S: int, window: int | None) -> Both:
    """Attend from the last T of S positions, over a cache of float16."""
    q, k, v = rand(T, H, dh), rand(S, Hkv, dh, seed=1).half(), rand(S, Hkv, dh, seed=2).half()
    end = torch.arange(S - T, S) + 1
    first = (end - window).clamp(min=0) if window else torch.zeros_like(end)
    key = torch.arange(S)
    hidden = (key < first[:, None]) | (key >= end[:, None])
    mask = torch.zeros(T, S, dtype=torch.float64).masked_fill(hidden, -torch.inf)
    want = reference.attention(q.double(), k.double(), v.double(), dh**-0.5, mask)
    return prompt_attention(q, k, v, torch.stack((first, end), 1), dh**-0.5, THREADS), want


def _looked(H: int, Hkv: int, dh: int) -> Both:
    """Attend from all of 77 rows to all of them, float32."""
    q, k, v = rand(77, H, dh), rand(77, Hkv, dh, seed=1), rand(77, Hkv, dh, seed=2)
    want = reference.attention(q.double(), k.double(), v.double(), dh**-0.5, None)
    return prompt_attention(q, k, v, None, dh**-0.5, THREADS), want


def _appended(T: int, H: int, dh: int) -> Both:
    k, v, positions = rand(T, H, dh), rand(T, H, dh, seed=1), 3 * torch.arange(T) % 11
    caches, table = _caches(T, H, 11, dh)
    want = torch.stack([c.double() for c in caches])
    run(at(append, k, v, table, positions)(T, H, dh), threads=THREADS)
    for t, place in enumerate(positions):
        want[t, 0, :, place], want[t, 1, :, place] = k[t].half().double(), v[t].half().double()
    return torch.stack(caches), want


def _caches(T: int, H: int, room: int, dh: int) -> tuple[list[Tensor], Tensor]:
    """Make a cache for each row, and the table of their addresses and strides."""
    caches = [rand(2, H, room, dh, seed=t).half() for t in range(T)]
    return caches, torch.tensor([[c[0].data_ptr(), c[1].data_ptr(), 2 * c.stride(1)] for c in caches])


def _attended(H: int, Hkv: int, dh: int, ranges: list[tuple[int, int]]) -> Both:
    """Attend from a row of each of several sequences, over caches that are NaN where nothing is seen."""
    T, scale = len(ranges), dh**-0.5
    q, out, seen = rand(T, H, dh), nothing(T, H * dh), torch.tensor(ranges)
    caches, table = _caches(T, Hkv, max(end for _, end in ranges) + 1, dh)
    want = []
    for t, (first, end) in enumerate(ranges):
        k, v = caches[t][:, :, first:end].double().transpose(1, 2)
        want.append(reference.attention(q[t : t + 1].double(), k, v, scale, None))
        caches[t][:, :, :first] = caches[t][:, :, end:] = torch.nan
    return done(at(attention, q, table, seen, out)(T, H, Hkv, dh, scale), out), torch.cat(want)


FAMILIES: tuple[Callable[[], Iterator[KernelCase]], ...] = (
    products,
    decoded,
    activations,
    by_row,
    attending,
    many_attending,
)


def cases() -> Iterator[KernelCase]:
    """Yield the cases of all kernels."""
    for family in FAMILIES:
        yield from family()
