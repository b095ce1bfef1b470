"""Rows of blocks have the bits of `ops.numpy_quants`; as bfloat16 they are rounded once, to nearest even."""

import numpy as np
import pytest
import torch

pytest.importorskip("llvmlite")

from llava_ref.gguf.types import TYPES
from llava_ref.kernels.cpu.launch import run
from llava_ref.kernels.cpu.rows import SUPPORTED, rows, widened
from llava_ref.kernels.cpu.typed import QUANTISED
from llava_ref.ops.torch_quants import decode

from ..test_planes import LAYOUTS, same_bits
from ..test_planes import extreme as extreme_scales

GUARD, SPECIAL = 64, 7.0
TINY = 2.0**-126  # below it a processor's own bfloat16 is 0


def blocks(kind: str, N: int, K: int) -> torch.Tensor:
    """Random bytes: every scale and exponent may come up, subnormal, infinite and NaN ones too."""
    seed = np.random.default_rng([N, K, *kind.encode()])
    return torch.from_numpy(seed.integers(0, 256, (N, K // TYPES[kind].weights * TYPES[kind].bytes), dtype=np.uint8))


def extreme(kind: str, N: int, K: int) -> torch.Tensor:
    """The same, where the type has float16 scales only of zeros, subnormal, largest, infinite and NaN ones."""
    return extreme_scales(kind, N, K) if kind in LAYOUTS else blocks(kind, N, K)


def read(kind: str, b: torch.Tensor, K: int, ids: list[int], scale: float = 1.0, threads: int = 1) -> torch.Tensor:
    """Read rows into memory between two canaries."""
    memory, where = torch.full((len(ids) * K + 2 * GUARD,), SPECIAL), torch.tensor(ids)
    run(
        rows(kind, b.data_ptr(), K, where.data_ptr(), len(ids), memory[GUARD:].data_ptr(), scale=scale), threads=threads
    )
    assert (memory[:GUARD] == SPECIAL).all() and (memory[-GUARD:] == SPECIAL).all()
    return memory[GUARD:-GUARD].view(-1, K)


def as_bfloat16(kind: str, b: torch.Tensor, K: int, first: int, n: int) -> torch.Tensor:
    memory = torch.full((n * K + 2 * GUARD,), SPECIAL, dtype=torch.bfloat16)
    run(widened(kind, b.data_ptr(), K, first, n, memory[GUARD:].data_ptr()), threads=1)
    assert (memory[:GUARD] == SPECIAL).all() and (memory[-GUARD:] == SPECIAL).all()
    return memory[GUARD:-GUARD].view(n, K)


def large(x: torch.Tensor) -> torch.Tensor:
    """Leave out what is too small: numbers there are compared as zeros."""
    return torch.where(x.abs() < TINY, 0.0, x)


def shapes(kind: str) -> list[tuple[int, int]]:
    """Odd numbers of rows, and widths that are a multiple of nothing but the block."""
    return (
        [(7, 1280)] + [(5, 32), (3, 1056)] * (TYPES[kind].weights <= 32) + [(3, 588), (4, 5)] * (kind not in QUANTISED)
    )


@pytest.mark.parametrize("kind", sorted(SUPPORTED))
class TestEveryType:
    @pytest.mark.parametrize("made", [blocks, extreme])
    def test_float32_rows_have_the_bits_of_the_blocks(self, kind, made):
        for N, K in shapes(kind):
            b, ids = made(kind, N, K), [N - 1, 0, 2, 2]
            assert same_bits(read(kind, b, K, ids), decode(b, kind)[ids])

    @pytest.mark.parametrize("made", [blocks, extreme])
    def test_bfloat16_rows_are_rounded_to_even(self, kind, made):
        for N, K in shapes(kind):
            b = made(kind, N, K)
            got, want = as_bfloat16(kind, b, K, 1, N - 1), decode(b, kind)[1:].to(torch.bfloat16)
            assert same_bits(large(got.float()), large(want.float()))

    def test_rows_are_scaled_in_float32(self, kind):
        b, scale = blocks(kind, 3, 256), 2560**0.5
        want = decode(b, kind)[[2, 1]] * torch.tensor(scale, dtype=torch.float32)
        assert same_bits(read(kind, b, 256, [2, 1], scale=scale), want)

    def test_the_last_row_is_read_no_further_than_its_end(self, kind):
        """The last page of a file ends where its memory ends: a byte beyond would be a fault."""
        import ctypes
        import mmap

        K = 512 if kind in QUANTISED else 500
        b = blocks(kind, 1, K)
        pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        libc = ctypes.CDLL(None)
        assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
        at = start + mmap.PAGESIZE - b.numel()
        ctypes.memmove(at, b.data_ptr(), b.numel())
        out, ids = torch.empty(1, K), torch.tensor([0])
        run(rows(kind, at, K, ids.data_ptr(), 1, out.data_ptr()), threads=1)
        assert same_bits(out, decode(b, kind))


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_0", "F16"])
def test_any_number_of_threads_gives_the_same(kind):
    b, ids = blocks(kind, 40, 8192), list(range(39, -1, -1))
    assert all(same_bits(read(kind, b, 8192, ids, threads=n), decode(b, kind)[ids]) for n in (1, 2, 3))


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "F16", "F32"])
def test_groups_of_32_go_where_strides_say(kind):
    """The order of tiles: rows 64 bytes apart, and groups 1024 bytes apart."""
    b, K, n = blocks(kind, 18, 512), 512, 16
    out = torch.zeros(K // 32, n, 32, dtype=torch.bfloat16)
    run(widened(kind, b.data_ptr(), K, 2, n, out.data_ptr(), row_stride=64, group_stride=1024), threads=1)
    assert same_bits(out.permute(1, 0, 2).reshape(n, K).float(), as_bfloat16(kind, b, K, 2, n).float())


def test_bfloat16_ties_go_to_even():
    """Q8_0 of scale 1 and 257 / 256 has values half way between two bfloat16 numbers, of both kinds."""
    q = torch.arange(-64, 64, dtype=torch.int8).view(torch.uint8).reshape(1, 4, 32)
    d = torch.tensor([257 / 256, 129 / 128, 3.0, 1.0], dtype=torch.float16).view(torch.uint8).reshape(1, 4, 2)
    b = torch.cat((d, q), -1).reshape(1, -1)
    want = decode(b, "Q8_0")
    half = want.view(torch.int32) & 0xFFFF == 0x8000
    odd = want.view(torch.int32)[half] >> 16 & 1
    assert (odd == 0).any() and (odd == 1).any()
    assert torch.equal(as_bfloat16("Q8_0", b, 128, 0, 1), want.to(torch.bfloat16))


def test_no_rows():
    assert read("Q4_0", blocks("Q4_0", 3, 32), 32, []).shape == (0, 32)
