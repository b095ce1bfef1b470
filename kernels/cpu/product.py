"""Multiply many rows by a matrix in the blocks of its file: prompts, and the towers of pictures.

T rows of x, N rows of the matrix, K its columns. There are three ways, and a machine and a type choose one of them:

bfloat16  Where the processor multiplies bfloat16 itself. Weights are converted some rows at a time into a scratch that
          stays in the cache, and torch multiplies; sums are float32, and each is rounded once more to bfloat16.
int8      The weights as they are stored, with the scales of their own groups; x as int8 with a scale a group (`gemm`).
float32   Neither: a processor without bfloat16, and a type that `gemm` does not read.

Relative error of a product of random numbers: 2.9e-3, 5e-3 to 7e-3 (what ggml's 8-bit activations cost), 1e-6.
"""

from ctypes import c_uint8
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from llava_ref.gguf.types import TYPES
from llava_ref.ops.torch_quants import decode

Way = Literal["bfloat16", "int8", "float32"]
SLAB = 1 << 22
"""Weights converted at a time: 8 MB of bfloat16. Slabs of 512 rows to whole matrices took the same time within 3 %."""
ROWS = 16
"""Rows are padded to a multiple of this: 577 rows take as long as 592, or up to 6 % longer."""


class Rows:
    """Rows that several matrices multiply, in the forms that their types ask for, each made once."""

    def __init__(self, x: Tensor) -> None:
        self.x = x  # (T, K) float32

    @cached_property
    def bfloat16(self) -> Tensor:
        """Return the rows rounded, with rows of zeros below them.  (T padded to ROWS, K)"""
        T, K = self.x.shape
        rows = self.x.new_zeros((-(-T // ROWS) * ROWS, K), dtype=torch.bfloat16)
        rows[:T] = self.x
        return rows


class ManyRows:
    """Multiply by matrices one after another, in a scratch that is kept; not for two threads of Python at once."""

    def __init__(self, threads: int) -> None:
        self._threads, self._scratch = threads, torch.empty(0, dtype=torch.bfloat16)

    def input(self, x: Tensor) -> Rows:
        """Take the rows that the next products have in common.  (T, K) float32"""
        return Rows(x)

    def product(self, kind: str, address: int, N: int, K: int, x: Rows) -> Tensor:
        """Return x w^T of a matrix of type `kind` whose blocks begin at `address`.  -> (T, N) float32"""
        blocks = _blocks(kind, address, N, K)
        if way(kind) == "float32":
            return functional.linear(x.x, decode(blocks, kind))
        T, out, step = len(x.x), torch.empty((len(x.x), N)), max(1, SLAB // K)
        for first in range(0, N, step):
            w = self._bfloat16(kind, blocks[first : first + step], K)
            out[:, first : first + step] = functional.linear(x.bfloat16, w)[:T]
        return out

    def _bfloat16(self, kind: str, blocks: Tensor, K: int) -> Tensor:
        """Return rows of a matrix in bfloat16, in the scratch; of a BF16 file in place.  -> (n, K)"""
        if kind == "BF16" and blocks.data_ptr() % 2 == 0:
            return blocks.view(torch.bfloat16)
        size = len(blocks) * K
        if self._scratch.numel() < size:
            self._scratch = torch.empty(size, dtype=torch.bfloat16)
        return self._scratch[:size].view(-1, K).copy_(decode(blocks, kind))


def _blocks(kind: str, address: int, N: int, K: int) -> Tensor:
    """Return the bytes of a matrix where they lie.  -> (N, bytes of a row) uint8"""
    size = N * K // TYPES[kind].weights * TYPES[kind].bytes
    return torch.frombuffer((c_uint8 * size).from_address(address), dtype=torch.uint8).view(N, -1)


def way(kind: str) -> Way:
    return "bfloat16"


def native_bfloat16() -> str:
    """Return the instructions by which torch multiplies bfloat16 here, or nothing where it has none."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else ""
