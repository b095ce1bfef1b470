"""A few rows times the blocks of every type: the product, whatever the scales, the threads and the other rows."""

import pytest
import torch

pytest.importorskip("llvmlite")

from llava_ref.kernels.cpu.activations import RoundedRows, quantise
from llava_ref.kernels.cpu.launch import run
from llava_ref.kernels.cpu.matvec import DENSE, FEW, SUPPORTED, matvec
from llava_ref.kernels.cpu.typed import QUANTISED

from .blocks import AtTheEnd, anything, extreme, usual, weights

GUARD, SPECIAL = 32, 7.0
ROUNDED, FLOAT32 = 1e-4, 2e-6
"""Largest relative error of a product: with rounded rows, and of float32 arithmetic alone."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(T: int, K: int) -> torch.Tensor:
    """Rows that are not rounded: multiples of 2^-10, the largest of every 256 of them 32767 times that."""
    x = torch.randint(-32767, 32768, (T, K), generator=torch.Generator().manual_seed(T))
    x[:, ::256] = 32767
    return x.float() / 1024


def multiplied(kind, blocks, x, bias=None, add=None, *, threads=1):
    """Multiply rows by blocks, a tensor or a copy of one, into memory between two canaries that held NaN."""
    T, K = x.shape
    address, N = (blocks.address, blocks.N) if isinstance(blocks, AtTheEnd) else (blocks.data_ptr(), len(blocks))
    rows = RoundedRows.of(T, K)
    if kind not in DENSE:
        run(quantise(x.data_ptr(), K, rows, T), threads=threads)
    memory = torch.full((T * N + 2 * GUARD,), SPECIAL)
    memory[GUARD:-GUARD] = torch.nan
    more = (0 if a is None else a.data_ptr() for a in (bias, add))
    given = x.data_ptr() if kind in DENSE else rows
    run(matvec(kind, address, N, K, given, T, memory[GUARD:].data_ptr(), *more), threads=threads)
    assert (memory[:GUARD] == SPECIAL).all() and (memory[-GUARD:] == SPECIAL).all()
    return memory[GUARD:-GUARD].view(T, N)


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def shapes(kind: str) -> list[tuple[int, int, int]]:
    """Rows of x, rows and columns of the matrix: odd, and a multiple of nothing but the block."""
    small = [(1, 1, 32), (2, 7, 576), (5, 4, 96)] * (kind not in DENSE and not kind.endswith(("_K", "_XS")))
    return [(1, 37, 1280), (3, 5, 256), (FEW, 13, 768), *small, *[(1, 9, 588), (2, 3, 5), (4, 6, 77)] * (kind in DENSE)]


@pytest.mark.parametrize("kind", sorted(SUPPORTED))
class TestEveryTypeOfMatrix:
    def test_a_product_is_within_the_error_of_rounding(self, kind):
        for T, N, K in shapes(kind):
            b, x, bias, add = usual(kind, N, K), normal(T, K), normal(N, seed=1), normal(T, N, seed=2)
            want = x.double() @ weights(kind, b).T
            assert off(multiplied(kind, b, x), want) < (FLOAT32 if kind in DENSE else ROUNDED)
            assert off(multiplied(kind, b, x, bias, add), want + bias + add) < ROUNDED

    def test_rows_that_are_not_rounded_give_the_product_in_float32(self, kind):
        for T, N, K in shapes(kind):
            b, x = usual(kind, N, K), whole(T, K)
            assert off(multiplied(kind, b, x), x.double() @ weights(kind, b).T) < FLOAT32

    def test_a_row_is_the_same_bits_whatever_the_others_are(self, kind):
        b, x = usual(kind, 7, 512), normal(FEW, 512)
        alone = torch.cat([multiplied(kind, b, x[t : t + 1].clone()) for t in range(FEW)])
        x[3] = torch.nan
        for T in range(1, FEW + 1):
            got = multiplied(kind, b, x[:T].clone())
            assert all(torch.equal(got[t], alone[t]) for t in range(T) if t != 3)
        assert got[3].isnan().all()

    def test_any_number_of_threads_gives_the_same(self, kind):
        b, x = usual(kind, 301, 1024), normal(2, 1024)
        one, two, three = (multiplied(kind, b, x, threads=n) for n in (1, 2, 3))
        assert torch.equal(one, two) and torch.equal(one, three)

    def test_neither_rows_nor_columns_are_read_behind_the_last(self, kind):
        K = 768 if kind in QUANTISED else 700
        b, x = usual(kind, 3, K), normal(2, K)
        copy = AtTheEnd(b)
        copy.N = 3
        assert torch.equal(multiplied(kind, copy, x), multiplied(kind, b, x))

    def test_zeros_leave_the_bias(self, kind):
        b, bias = usual(kind, 5, 256), normal(5)
        assert torch.equal(multiplied(kind, b, torch.zeros(2, 256), bias), bias.expand(2, 5))


@pytest.mark.parametrize("kind", sorted(QUANTISED))
class TestScales:
    def test_the_least_and_the_largest_are_scales_like_others(self, kind):
        """Of infinite ones and NaN comes what is not finite; of zero, zero."""
        b, x = extreme(kind, 1280), normal(1, 1280)
        got, w = multiplied(kind, b, x)[0].double(), weights(kind, b)
        finite = w.isfinite().all(1)
        want, size = (w @ x[0].double())[finite], (w.norm(dim=1) * x.norm())[finite]
        assert finite.sum() >= 4 and not got[~finite].isfinite().any()
        assert ((got[finite] - want).abs() <= ROUNDED * size).all()

    def test_any_bytes_are_blocks(self, kind):
        """But weights beyond 2^90: whole sums of codes, up to 2^31, are multiplied by the scale first."""
        b, x = anything(kind, 300, 256), normal(1, 256)
        got, w = multiplied(kind, b, x)[0].double(), weights(kind, b)
        small = (w.abs() < 2.0**90).all(1)
        want, size = (w @ x[0].double())[small], (w.norm(dim=1) * x.norm())[small]
        assert ((got[small] - want).abs() <= ROUNDED * size).all() and small.any()


def test_more_rows_than_there_is_room_for_are_refused():
    b, x = usual("Q8_0", 2, 32), normal(FEW + 1, 32)
    with pytest.raises(ValueError, match="rows: 9, expected at most 8"):
        multiplied("Q8_0", b, x)
