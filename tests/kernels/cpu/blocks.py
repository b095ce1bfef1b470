"""Blocks of every type that a processor reads, their weights in float64, and memory that ends where they end."""

import ctypes
import mmap

import numpy as np
import torch

from llava_ref.conformance.pairs.random_blocks import SCALE, SECOND, random_tensor
from llava_ref.gguf.types import TYPES
from llava_ref.ops.torch_quants import decode

ENDS = torch.tensor([0, -0.0, 6e-8, -3e-5, 65504, torch.inf, -torch.inf, torch.nan], dtype=torch.float16)
EXPONENTS = [0, 1, 2, 127, 200, 254, 255, 128]


def anything(kind: str, N: int, K: int) -> torch.Tensor:
    """Random bytes: every scale and exponent may come up, subnormal, infinite and NaN ones too."""
    seed = np.random.default_rng([N, K, *kind.encode()])
    return torch.from_numpy(seed.integers(0, 256, (N, K // TYPES[kind].weights * TYPES[kind].bytes), dtype=np.uint8))


def extreme(kind: str, K: int) -> torch.Tensor:
    """Eight rows of random codes, each with one scale in all its blocks: zeros, subnormal, largest, infinite, NaN."""
    b = anything(kind, len(ENDS), K)
    blocks = b.view(len(ENDS), -1, TYPES[kind].bytes)
    if kind == "MXFP4":
        blocks[:, :, 0] = torch.tensor(EXPONENTS, dtype=torch.uint8)[:, None]
        return b
    for at in (SCALE[kind], SCALE[kind] + 2) if kind in SECOND else (SCALE[kind],):
        blocks[:, :, at : at + 2] = ENDS.view(torch.uint8).view(-1, 1, 2)
    return b


def usual(kind: str, N: int, K: int) -> torch.Tensor:
    """Random blocks whose weights have the size that a model's have."""
    return torch.from_numpy(random_tensor(kind, N, K, 1))


def weights(kind: str, b: torch.Tensor) -> torch.Tensor:
    """Decode rows of blocks.  -> float64"""
    return decode(b, kind).double()


class AtTheEnd:
    """A copy of bytes of which the last is the last of a page, and the page behind it is forbidden."""

    def __init__(self, b: torch.Tensor):
        size = b.numel()
        whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.pages = mmap.mmap(-1, whole + mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + whole), mmap.PAGESIZE, 0) == 0
        self.address = start + whole - size
        ctypes.memmove(self.address, b.contiguous().data_ptr(), size)
