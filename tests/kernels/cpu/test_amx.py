"""Products and attention by tiles, on any processor: without AMX its level is run in plain code, by another process."""

import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch

pytest.importorskip("llvmlite")

from llava_ref.kernels.cpu import amx, processor, prompt_attention
from llava_ref.kernels.cpu.amx_gemm import AmxProduct, PackedTiles
from llava_ref.kernels.cpu.compiled import Kernel
from llava_ref.kernels.cpu.launch import Launch, arguments, run
from llava_ref.kernels.cpu.simd import f32x16, load, store, words
from llava_ref.kernels.cpu.tile_packing import rounded_pair

from .blocks import AtTheEnd, usual, weights

within = pytest.mark.skipif(not processor.TILES, reason="run by another process, at level amx")
TINY = np.finfo(np.float32).tiny
SHAPES = [(129, 512, 1), (33, 256, 17), (130, 768, 577), (257, 1280, 17)]  # N, K, T
ODD = [(1, 1, 1), (7, 1, 17), (33, 77, 1), (129, 301, 577)]  # of types without blocks


@pytest.mark.skipif(processor.TILES, reason="this process is at level amx")
def test_the_level_is_right_on_any_processor():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"LLAVA_REF_SIMD": "amx"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "1 skipped" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]


def flushed(x: np.ndarray) -> np.ndarray:
    """Return float32 of which subnormal ones are 0."""
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


def words_of(x: np.ndarray) -> np.ndarray:
    """Return the upper words of float32."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def numbers(*shape: int, sizes: Sequence[int], seed: int) -> np.ndarray:
    """Return bfloat16 as float32, of sizes 2^n that take turns along the second axis."""
    scales = 2.0 ** np.resize(sizes, shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    x = np.random.default_rng(seed).standard_normal(shape) * scales
    return (x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def defined(sums: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Add a product of tiles as Intel's manual defines TDPBF16PS.  (16, 16) (16, 32) (16, 16, 2)"""
    a, b, parts = flushed(a).astype(np.float64), flushed(b).astype(np.float64), np.zeros((2, 16, 16), np.float32)
    for k in range(16):
        for i in range(2):
            parts[i] = flushed((parts[i] + a[:, 2 * k + i, None] * b[k, None, :, i]).astype(np.float32))
    return flushed(flushed(sums) + flushed(parts[0] + parts[1]))


def twice(args, first, end):
    a, b, out = words(args, 3)
    with amx.tiles():
        amx.load(3, out, 64)
        amx.load(4, a, 128)
        amx.load(6, b, 64)
        amx.dot(3, 4, 6)
        amx.dot(7, 4, 6)
        amx.store(3, out, 64)
        amx.zero(3)
        amx.store(3, out + 1024, 64)
        amx.store(7, out + 2048, 64)


@within
def test_tiles_are_loaded_multiplied_and_stored():
    a = np.ascontiguousarray(numbers(32, 16, sizes=[0, -63, -127, 60], seed=1).T)
    b, sums = numbers(16, 16, 2, sizes=[-63, 60, -63, -127, 0], seed=2), numbers(16, 16, sizes=[-126, -125, 0], seed=3)
    left, right, out = np.zeros((16, 2, 32), np.uint16), words_of(b), np.full((3, 16, 16), np.nan, np.float32)
    left[:, 0], out[0] = words_of(a), sums
    args = arguments(left.ctypes.data, right.ctypes.data, out.ctypes.data)
    run(Launch(Kernel("test_amx.twice", twice), args, 1, 1), threads=1)
    want = np.stack([defined(x, a, b) for x in (sums, np.zeros_like(sums))])
    assert not out[1].any()
    np.testing.assert_allclose(out[::2], want, rtol=1e-6 if processor.OWN else 0)


def rounding(args, first, end):
    a, out = words(args, 2)
    store(rounded_pair(load(f32x16, a), load(f32x16, a + 64)), out)


@within
def test_numbers_are_rounded_as_the_processor_does():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x007FFFFF, 1, 0x00800000])
    x = np.resize(np.concatenate([bits, bits | 1 << 31]).astype(np.uint32), 32)
    rounded = np.array([0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80, 0x7FC0, 0, 0, 0x0080])
    out = np.zeros(32, np.uint16)
    run(Launch(Kernel("test_amx.rounding", rounding), arguments(x.ctypes.data, out.ctypes.data), 1, 1), threads=1)
    np.testing.assert_array_equal(out, np.resize(np.concatenate([rounded, rounded | 1 << 15]), 32))


def multiplied(kind: str, b: torch.Tensor, x: torch.Tensor, threads: int) -> torch.Tensor:
    at, tiles = AtTheEnd(b), PackedTiles(x, threads)
    return AmxProduct(threads).product(kind, at.address, len(b), x.shape[1], tiles)


@within
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K", "MXFP4"])
def test_products_are_right_whatever_the_threads(kind):
    for N, K, T in SHAPES + ODD * (kind in ("F32", "F16", "BF16")):
        b, x = usual(kind, N, K), torch.randn((T, K), generator=torch.Generator().manual_seed(K))
        y, want = multiplied(kind, b, x, 1), x.double() @ weights(kind, b).T
        assert torch.equal(multiplied(kind, b, x, 2), y), (N, K, T)
        assert (y - want).norm() < 5e-3 * want.norm(), (N, K, T)


def attention(q, k, v, ranges, scale):
    """Attend in float64.  -> (T, H * dh)"""
    T, H, dh = q.shape
    k, v = (x.double().repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q.double(), k) * scale
    if ranges is not None:
        key = torch.arange(len(k))
        scores = scores.masked_fill((key < ranges[:, :1]) | (key >= ranges[:, 1:]), -torch.inf)
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v).reshape(T, H * dh)


@within
@pytest.mark.parametrize(("terms", "bound"), [(1, 4e-3), (2, 1e-5)])
@pytest.mark.parametrize(("T", "S", "dh"), [(1, 1, 64), (1, 601, 20), (17, 33, 72), (577, 577, 64), (33, 1029, 256)])
def test_attention_is_right_whatever_the_threads(T, S, dh, terms, bound):
    random = torch.Generator().manual_seed(S)
    q, k, v = (torch.randn(shape, generator=random) for shape in ((T, 4, dh), (S, 2, dh), (S, 2, dh)))
    seen = torch.tensor([[max(0, S - T + t - 540), S - T + t + 1] for t in range(T)])
    for ranges, half in (None, False), (seen, True):
        keys, values = (x.half() if half else x for x in (k, v))
        y, other = (prompt_attention.by_tiles(q, keys, values, ranges, dh**-0.5, terms, threads) for threads in (1, 2))
        want = attention(q, keys, values, ranges, dh**-0.5)
        assert torch.equal(y, other)
        assert (y - want).norm() < bound * want.norm()
