"""Cases for the kernels that multiply by a matrix, or read its rows.   M rows of x, N rows and K columns of it."""

from collections.abc import Iterator
from functools import partial

import torch

from .. import reference
from ..planes import LAYOUTS
from .case import FLOAT16, FLOAT32, TERMS, Both, KernelCase, activated, rand, terms, weights


def matvec(device: str) -> Iterator[KernelCase]:
    for kind in LAYOUTS:
        for M, N, K in (1, 37, 1280), (3, 5, 256), (8, 70, 4096):
            sort = f"{kind} {M} x {K} x {N}"
            yield KernelCase("matvec.matvec", sort, TERMS, partial(_multiplied, kind, M, N, K, device))
        yield KernelCase("matvec.gated", kind, 2 * TERMS, partial(_gated, kind, device))


def _multiplied(kind: str, M: int, N: int, K: int, device: str) -> Both:
    """Multiply with a bias and on top of what is there, into memory that held NaN."""
    from ..triton.activations import quantise
    from ..triton.matvec import matvec

    x, (planes, w) = rand(M, K, seed=2, device=device), weights(kind, N, K, device)
    bias, add = rand(N, seed=3, device=device), rand(M, N, seed=4, device=device)
    out = torch.full((M, N), torch.nan, device=device)
    matvec(quantise(x), planes, out, bias=bias, add=add)
    return out, reference.linear(x.double(), w, bias.double()) + add.double()


def _gated(kind: str, device: str) -> Both:
    from ..triton.activations import quantise
    from ..triton.matvec import gated

    x, (planes, w) = rand(2, 1280, seed=2, device=device), weights(kind, 2 * 160, 1280, device)
    gate, up = reference.linear(x.double(), w).chunk(2, 1)
    return terms(gated(quantise(x), planes, "silu"), 160), activated("silu", gate) * up


def dense(device: str) -> Iterator[KernelCase]:
    for dtype in torch.float16, torch.bfloat16, torch.float32:
        name = str(dtype).removeprefix("torch.")
        for M, N, K in (1, 37, 160), (3, 5, 1056), (8, 70, 4096):
            run = partial(_multiplied_dense, dtype, M, N, K, device)
            yield KernelCase("dense.matvec", f"{name} {M} x {K} x {N}", FLOAT32, run)
        yield KernelCase("dense.gated", name, 2 * TERMS, partial(_gated_dense, dtype, device))


def _multiplied_dense(dtype: torch.dtype, M: int, N: int, K: int, device: str) -> Both:
    from ..triton.activations import quantise
    from ..triton.dense import matvec

    x, w = rand(M, K, seed=2, device=device), rand(N, K, device=device).to(dtype)
    bias, add = rand(N, seed=3, device=device), rand(M, N, seed=4, device=device)
    out = torch.full((M, N), torch.nan, device=device)
    matvec(quantise(x), w, out, bias=bias, add=add)
    return out, reference.linear(x.double(), w.double(), bias.double()) + add.double()


def _gated_dense(dtype: torch.dtype, device: str) -> Both:
    from ..triton.activations import quantise
    from ..triton.dense import gated

    x, w = rand(2, 160, seed=2, device=device), rand(2 * 96, 160, device=device).to(dtype)
    gate, up = reference.linear(x.double(), w.double()).chunk(2, 1)
    return terms(gated(quantise(x), w, "gelu_tanh"), 96), activated("gelu_tanh", gate) * up


def rows_and_matmul(device: str) -> Iterator[KernelCase]:
    for kind in LAYOUTS:
        yield KernelCase("rows.rows, rows.dense", kind, 0.0, partial(_rows, kind, device))
        for M, N, K in (9, 37, 1280), (70, 130, 512):
            run = partial(_many_rows, kind, M, N, K, torch.float16, device)
            yield KernelCase("matmul.matmul", f"{kind} {M} x {K} x {N}", FLOAT16, run)
    if device == "cuda":  # Triton's interpreter computes wrongly in bfloat16
        run = partial(_many_rows, "Q4_K", 70, 130, 512, torch.bfloat16, device)
        yield KernelCase("matmul.matmul", "Q4_K 70 x 512 x 130, bfloat16", 8 * FLOAT16, run)


def _rows(kind: str, device: str) -> Both:
    from ..triton.rows import dense, rows

    (planes, w), ids = weights(kind, 9, 1280, device), [8, 0, 3, 3]
    found = rows(planes, torch.tensor(ids, dtype=torch.int32, device=device), scale=0.5)
    return torch.cat((found, dense(planes, torch.float32))), torch.cat((w[ids] / 2, w))


def _many_rows(kind: str, M: int, N: int, K: int, dtype: torch.dtype, device: str) -> Both:
    from ..triton.matmul import matmul

    x, (planes, w), bias = rand(M, K, seed=2, device=device), weights(kind, N, K, device), rand(N, device=device)
    return matmul(x, planes, bias=bias, dtype=dtype), reference.linear(x.double(), w, bias.double())
