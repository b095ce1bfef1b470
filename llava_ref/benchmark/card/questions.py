"""Questions about single kernels.   M rows of x, N rows and K columns of a matrix, T queries, S keys, H heads.

A kernel's bytes are those of its weights, or of the keys and values; what else it moves is small beside them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...conformance.pairs.random_blocks import random_tensor
from ...kernels.cases.case import rand
from ...kernels.planes import LAYOUTS, Planes, beside, pack
from ...ops.sees import Sees
from .sizes import Sizes
from .timing import Launch, Row, Timer, answered, copies

REPEATED = 64  # rows of a matrix that are drawn at random; the others are copies of these
COMPARED = ("Q4_K", "Q8_0")  # types whose products are compared with those of a float16 copy
NARROW = torch.float16  # of x and of a copy of the weights, where there are many rows
FEW, MANY = (1, 2, 4, 8), (9, 16, 32, 64, 128)  # rows of x: for a matrix-vector kernel, for a product


@dataclass(frozen=True, slots=True)
class Card:
    """What questions are put to: a device with its timer, and the sizes to ask about."""

    timer: Timer
    sizes: Sizes
    device: str = "cuda"

    def matrix(self, kind: str, N: int, K: int) -> Planes:
        """Return a matrix of random blocks, in memory of its own."""
        blocks = torch.from_numpy(random_tensor(kind, min(N, REPEATED), K, 1)).to(self.device)
        return pack(blocks.repeat(-(-N // REPEATED), 1)[:N].contiguous(), kind, (N, K))

    def several(self, w: Planes) -> list[Planes]:
        """Return as many copies of a matrix as do not fit the cache."""
        return [w, *(beside([w]) for _ in range(copies(self.timer.cache_bytes, w.n_bytes) - 1))]

    def dense(self, N: int, K: int, dtype: torch.dtype) -> list[Tensor]:
        """Return as many matrices of ordinary numbers as do not fit the cache."""
        first = (rand(min(N, REPEATED), K, device=self.device) / K**0.5).to(dtype).repeat(-(-N // REPEATED), 1)[:N]
        return [first.clone() for _ in range(copies(self.timer.cache_bytes, first.nbytes))]


Question = Callable[[Card], Iterator[Row]]


def copy(card: Card) -> Iterator[Row]:
    """Ask how fast memory is copied: every byte is read and written."""

    def measured() -> Row:
        source = torch.ones(card.sizes.copy_bytes, dtype=torch.uint8, device=card.device)
        seconds = card.timer.seconds([partial(torch.empty_like(source).copy_, source)])
        return Row("copy", f"{source.nbytes >> 20} MiB", seconds, 2 * source.nbytes)

    yield answered("copy", "memory", measured)


def matvec(card: Card) -> Iterator[Row]:
    """Ask how fast a row is multiplied by a matrix of every type, in two sizes: their difference holds no launch."""
    s = card.sizes
    for kind in (*LAYOUTS, "F16"):
        rows = [answered("matvec", f"{kind} {N} x {s.width}", partial(_matvec, card, kind, N, 1)) for N in _heights(s)]
        yield from rows
        yield answered("matvec", f"{kind}, launch", partial(_launch_cost, kind, *rows))


def _heights(s: Sizes) -> tuple[int, int]:
    return s.width, 2 * s.mlp


def _matvec(card: Card, kind: str, N: int, M: int, question: str = "matvec") -> Row:
    from ...kernels.triton import dense, matvec
    from ...kernels.triton.activations import quantise

    K = card.sizes.width
    x, out, launches = quantise(rand(M, K, device=card.device)), torch.empty(M, N, device=card.device), list[Launch]()
    if kind == "F16":
        weights = card.dense(N, K, torch.float16)
        n_bytes, launches = weights[0].nbytes, [partial(dense.matvec, x, w, out) for w in weights]
    else:
        planes = card.several(card.matrix(kind, N, K))
        n_bytes, launches = planes[0].n_bytes, [partial(matvec.matvec, x, w, out) for w in planes]
    what = f"{kind} {N} x {K}" + (f", {M} rows" if question != "matvec" else "")
    return Row(question, what, card.timer.seconds(launches), n_bytes)


def _launch_cost(kind: str, small: Row, large: Row) -> Row:
    """Return what is left of the smaller product's time without the bytes, at the rate of the bytes between the two."""
    if small.problem or large.problem:
        raise ValueError("one of the two was not measured")
    assert small.seconds and large.seconds and small.n_bytes and large.n_bytes
    per_byte = (large.seconds - small.seconds) / (large.n_bytes - small.n_bytes)
    rate = f"{1e-9 / per_byte:.0f} GB/s between the two" if per_byte > 0 else "the larger took no longer"
    return Row("matvec", f"{kind}, launch", max(0.0, small.seconds - small.n_bytes * per_byte), note=rate)


def rows_of_x(card: Card) -> Iterator[Row]:
    """Ask up to how many rows each way of multiplying is the fastest."""
    N, K, name = 2 * card.sizes.mlp, card.sizes.width, "rows of x"
    for kind in COMPARED:
        for M in FEW:
            yield answered(name, f"matvec {kind}, {M} rows", partial(_matvec, card, kind, N, M, name))
        for M in MANY:
            yield answered(name, f"fused {kind}, {M} rows", partial(_fused, card, kind, N, K, M, name))
    for M in *FEW, *MANY:
        yield answered(name, f"float16, {M} rows", partial(_dense, card, N, K, M, name))


def prefill(card: Card) -> Iterator[Row]:
    """Ask how fast the products of a prompt with a picture are: cuBLAS on a copy, fused, and unpacked before."""
    s, name = card.sizes, "products"
    for N, K in (s.width, s.width), (3 * s.width, s.width), (2 * s.mlp, s.width), (s.width, s.mlp):
        yield answered(name, f"float16 {N} x {K}", partial(_dense, card, N, K, s.prompt, name))
        for kind in COMPARED:
            yield answered(name, f"fused {kind} {N} x {K}", partial(_fused, card, kind, N, K, s.prompt, name))
            yield answered(name, f"unpacked {kind} {N} x {K}", partial(_unpacked, card, kind, N, K, s.prompt, name))


def _dense(card: Card, N: int, K: int, M: int, question: str) -> Row:
    from ...ops.cuda.stores import wide_product

    x, weights = rand(M, K, device=card.device).to(NARROW), card.dense(N, K, NARROW)
    seconds = card.timer.seconds([partial(wide_product, x, w) for w in weights])
    return Row(question, f"float16 {N} x {K}, {M} rows", seconds, weights[0].nbytes, 2 * M * N * K)


def _fused(card: Card, kind: str, N: int, K: int, M: int, question: str) -> Row:
    from ...kernels.triton.matmul import matmul

    x, planes = rand(M, K, device=card.device).to(NARROW), card.several(card.matrix(kind, N, K))
    seconds = card.timer.seconds([partial(matmul, x, w, dtype=NARROW) for w in planes])
    return Row(question, f"fused {kind} {N} x {K}, {M} rows", seconds, planes[0].n_bytes, 2 * M * N * K)


def _unpacked(card: Card, kind: str, N: int, K: int, M: int, question: str) -> Row:
    from ...kernels.triton.rows import dense
    from ...ops.cuda.stores import wide_product

    x, planes = rand(M, K, device=card.device).to(NARROW), card.several(card.matrix(kind, N, K))
    scratch = torch.empty(N, K, dtype=NARROW, device=card.device)

    def run(w: Planes) -> Tensor:
        return wide_product(x, dense(w, scratch.dtype, scratch))

    seconds = card.timer.seconds([partial(run, w) for w in planes])
    return Row(question, f"unpacked {kind} {N} x {K}, {M} rows", seconds, planes[0].n_bytes, 2 * M * N * K)


def attention(card: Card) -> Iterator[Row]:
    """Ask how fast attention is: over a prompt, over a picture, and of one token; torch's beside the first two."""
    s, name = card.sizes, "attention"
    patches = (s.image // s.patch) ** 2 + 1
    passes = ("prompt", s.prompt, s.heads, s.head_size, True), (
        "picture", patches, s.vision_heads, s.vision_width // s.vision_heads, False
    )  # fmt: skip
    for what, T, H, dh, causal in passes:
        yield answered(name, what, partial(_attention, card, what, T, H, dh, causal))
        yield answered(name, f"{what}, torch", partial(_torch_attention, card, what, T, H, dh, causal))
    for Hkv in s.heads, max(1, s.heads // 4):
        what = f"one token, {s.heads} over {Hkv} heads"
        yield answered(name, what, partial(_decode, card, what, Hkv))


def _flops(T: int, H: int, dh: int, causal: bool) -> int:
    return 4 * T * T * H * dh // (2 if causal else 1)


def _attention(card: Card, what: str, T: int, H: int, dh: int, causal: bool) -> Row:
    from ...kernels.triton.attention import AttentionPlan, attention

    q, k, v = (rand(T, H, dh, seed=i, device=card.device).to(t) for i, t in enumerate(_QKV))
    key = np.arange(T)
    plan = AttentionPlan.of(Sees(key, key, causal=causal), dh, card.device)
    seconds = card.timer.seconds([partial(attention, q, k, v, dh**-0.5, plan)])
    return Row("attention", f"{what}, {T} rows", seconds, n_flops=_flops(T, H, dh, causal))


_QKV = (torch.float32, torch.float16, torch.float16)


def _torch_attention(card: Card, what: str, T: int, H: int, dh: int, causal: bool) -> Row:
    q, k, v = (rand(1, H, T, dh, seed=i, device=card.device).half() for i in range(3))
    run = partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=causal)
    return Row("attention", f"{what}, {T} rows, torch", card.timer.seconds([run]), n_flops=_flops(T, H, dh, causal))


def _decode(card: Card, what: str, Hkv: int) -> Row:
    from ...kernels.triton.activations import Activations
    from ...kernels.triton.decode import decode_attention
    from ...kernels.triton.slices import Scratch

    s, room = card.sizes, card.sizes.context + 1
    H, dh = s.heads, s.head_size
    n_bytes = 2 * Hkv * s.context * dh * 2
    first = rand(2, Hkv, room, dh, device=card.device).half()
    caches = [first.clone() for _ in range(copies(card.timer.cache_bytes, n_bytes))]
    qkv, angle = rand(1, (H + 2 * Hkv) * dh, device=card.device), rand(room, dh // 2, device=card.device)
    at = torch.tensor([s.context], dtype=torch.int32, device=card.device)
    out, scratch = Activations.empty(1, H * dh, card.device), Scratch.make((H, Hkv), dh, card.device)

    def run(cache: Tensor) -> None:
        decode_attention(
            qkv, cache[0], cache[1], at, angle, angle, out, scratch,
            heads=(H, Hkv), scale=dh**-0.5, pairs="adjacent",
        )  # fmt: skip

    seconds = card.timer.seconds([partial(run, cache) for cache in caches])
    return Row("attention", f"{what}, {s.context} before", seconds, n_bytes)


def small(card: Card) -> Iterator[Row]:
    """Ask what a kernel costs that moves next to nothing."""
    from ...kernels.triton.activations import quantise, rms_norm_quantise

    x, gain = rand(1, card.sizes.width, device=card.device), rand(card.sizes.width, device=card.device)
    launches: Sequence[tuple[str, Launch]] = (
        (f"norm to two terms, 1 x {card.sizes.width}", partial(rms_norm_quantise, x, gain, 1e-5)),
        (f"to two terms, 1 x {card.sizes.width}", partial(quantise, x)),
    )
    for what, launch in launches:
        yield answered("small kernels", what, partial(_timed, card, what, launch))


def _timed(card: Card, what: str, launch: Launch) -> Row:
    return Row("small kernels", what, card.timer.seconds([launch]))
