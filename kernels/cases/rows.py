"""Cases for planes, and for the kernels that treat each row by itself.   M rows of K values."""

from collections.abc import Iterator
from functools import partial
from typing import get_args

import torch

from llava_ref.ops.arrays import Activation, Pairs

from .. import reference
from ..planes import LAYOUTS, unpack
from .case import EPS, FLOAT32, TERMS, Both, KernelCase, activated, rand, terms, weights


def planes(device: str) -> Iterator[KernelCase]:
    for kind in LAYOUTS:
        yield KernelCase("planes.pack, planes.unpack", kind, 0.0, partial(_unpacked, kind, device))


def _unpacked(kind: str, device: str) -> Both:
    packed, w = weights(kind, 7, 1280, device)
    return unpack(packed), w


def activations(device: str) -> Iterator[KernelCase]:
    for M, K in (1, 96), (3, 1056), (8, 4096):
        sort = f"{M} x {K}"
        yield KernelCase("activations.quantise", sort, TERMS, partial(_quantised, M, K, device))
        yield KernelCase("activations.rms_norm", sort, FLOAT32, partial(_normed, M, K, device))
        for add in False, True:
            run = partial(_normed_and_quantised, M, K, add, device)
            yield KernelCase("activations.rms_norm_quantise", sort + ", add" * add, TERMS, run)


def _quantised(M: int, K: int, device: str) -> Both:
    from ..triton.activations import quantise

    x = rand(M, K, device=device)
    return terms(quantise(x), K), x.double()


def _normed(M: int, K: int, device: str) -> Both:
    from ..triton.activations import rms_norm

    x, gain = 3 * rand(M, K, device=device) + 1, rand(K, seed=1, device=device)
    return rms_norm(x, gain, EPS), reference.rms_norm(x.double(), gain.double(), EPS)


def _normed_and_quantised(M: int, K: int, add: bool, device: str) -> Both:
    from ..triton.activations import rms_norm_quantise

    x, gain = 3 * rand(M, K, device=device) + 1, rand(K, seed=1, device=device)
    branch, more = rand(M, K, seed=2, device=device), rand(K, seed=3, device=device)
    h = x.double() + reference.rms_norm(branch.double(), more.double(), EPS) * add
    found = rms_norm_quantise(x, gain, EPS, add=branch if add else None, add_gain=more if add else None)
    return terms(found, K), reference.rms_norm(h, gain.double(), EPS)


def gates_and_rope(device: str) -> Iterator[KernelCase]:
    for kind in get_args(Activation):
        yield KernelCase("gates.gate", kind, FLOAT32, partial(_gated, kind, device))
    for pairs in get_args(Pairs):
        yield KernelCase("rope.rope", pairs, FLOAT32, partial(_turned, pairs, device))


def scores(device: str) -> Iterator[KernelCase]:
    for V in 70, 2048, 32064:
        for last in 0.0, float("nan"), float("-inf"):
            run = partial(_summarised, V, last, device)
            yield KernelCase("scores.summarise", f"{V} logits, the last {last}", FLOAT32, run)


def _summarised(V: int, last: float, device: str) -> Both:
    """Return of a second launch whether all are finite, whether the largest is named, and logsumexp (0 for NaN)."""
    from ..triton.scores import Summary, summarise

    logits, summary = 5 * rand(1, V, device=device), Summary.empty(V, device)
    logits[0, -1] = last
    for _ in range(2):
        summarise(logits, summary)
    total = summary.total if last == 0 else torch.isnan(summary.total).float() - 1
    x = logits.double().nan_to_num(-torch.inf)
    want = torch.tensor([last == 0, True, x.logsumexp(1) if last == 0 else 0.0], dtype=torch.float64)
    return torch.cat((summary.finite.double(), (summary.best == x.argmax()).double(), total.double())), want.to(device)


def _gated(kind: Activation, device: str) -> Both:
    from ..triton.gates import gate

    both = 4 * rand(5, 2 * 1030, device=device)
    g, up = both[:, :1030], both[:, 1030:]
    return gate(g, up, kind), activated(kind, g) * up.double()


def _turned(pairs: Pairs, device: str) -> Both:
    from ..triton.rope import rope

    x, angle = rand(7, 3, 72, device=device), 100 * rand(7, 36, seed=1, device=device)
    cos, sin = angle.cos(), angle.sin()
    return rope(x, cos, sin, pairs), reference.rope(x.double(), cos.double(), sin.double(), pairs)
