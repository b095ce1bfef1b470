"""Multiply many rows by a matrix in the blocks of its file: prompts, and the towers of pictures.

T rows of x, N rows of the matrix, K its columns. The machine and the type choose a way, T does not:

amx       The processor multiplies tiles of bfloat16: both are rounded, sums are float32 (`amx_gemm`). Every type.
integers  The weights as they are stored, with the scales of their own groups; x with a scale a group (`gemm`). Those
          of a file of numbers are rounded to codes of 12 bits and a sign (`dense_panels`).
bfloat16  A file of numbers, and the processor multiplies bfloat16 lane by lane (AVX512-BF16): torch does, over weights
          that are rounded some rows at a time; each sum is rounded to bfloat16 once more.
float32   A file of numbers, on a processor of which we name no instructions: torch.

Relative error of a product of random numbers: 2.3e-3; 5e-3 to 6e-3, what ggml's 8-bit activations cost, 4e-5 where
codes have 16 bits, 2e-4 of numbers; 2.9e-3; 1e-6.
"""

from ctypes import c_uint8
from functools import cache, cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from . import gemm, panels, processor
from .amx_gemm import AmxProduct, PackedTiles
from .launch import run
from .rows import rows, widened
from .typed import DENSE

Way = Literal["amx", "integers", "bfloat16", "float32"]
SLAB = 1 << 22
"""Weights converted at a time: 8 MB of bfloat16. Slabs of 512 rows to whole matrices took the same time within 3 %."""
ROWS = 16
"""Rows are padded to a multiple of this: 577 rows take as long as 592, or up to 6 % longer."""


@cache
def way(kind: str) -> Way:
    """Return how matrices of a type are multiplied on this machine."""
    if processor.TILES:
        return "amx"
    if kind in DENSE and processor.BF16:
        return "bfloat16"
    return "float32" if kind in DENSE and processor.SET == "portable" else "integers"


def chosen(kind: str) -> str:
    """Return in words how matrices of a type are multiplied on this machine."""
    bits = 8 if panels.CODES[kind].form.octets else 16
    words = {"amx": "bf16 (AMX)", "integers": f"int{bits} ({processor.SET})", "bfloat16": "bf16 (AVX512-BF16)"}
    return words.get(way(kind), "f32")


class Rows:
    """Rows that several matrices multiply, in the forms that their types ask for, each made once."""

    def __init__(self, x: Tensor, threads: int) -> None:
        self.x, self._threads = x.contiguous(), threads  # (T, K) float32
        self._tiles = dict[bool, gemm.Tiles]()

    @cached_property
    def bfloat16(self) -> Tensor:
        """Return the rows rounded, with rows of zeros below them.  (T padded to ROWS, K)"""
        T, K = self.x.shape
        padded = self.x.new_zeros((-(-T // ROWS) * ROWS, K), dtype=torch.bfloat16)
        padded[:T] = self.x
        return padded

    @cached_property
    def packed(self) -> PackedTiles:
        """Return the rows rounded, as tiles."""
        return PackedTiles(self.x, self._threads)

    def tiles(self, kind: str) -> gemm.Tiles:
        """Return the rows rounded to integers, as a type's codes ask for."""
        octets = panels.CODES[kind].form.octets
        if octets not in self._tiles:
            self._tiles[octets] = gemm.Tiles(self.x, octets, self._threads)
        return self._tiles[octets]


class ManyRows:
    """Multiply by matrices one after another, in a scratch that is kept; not for two threads of Python at once."""

    def __init__(self, threads: int) -> None:
        self._threads, self._integers = threads, gemm.Integers(threads)
        self._scratch = torch.empty(0, dtype=torch.uint8)

    @cached_property
    def _amx(self) -> AmxProduct:
        return AmxProduct(self._threads)

    def input(self, x: Tensor) -> Rows:
        """Take the rows that the next products have in common.  (T, K) float32"""
        return Rows(x, self._threads)

    def product(self, kind: str, address: int, N: int, K: int, x: Rows) -> Tensor:
        """Return x w^T of a matrix of type `kind` whose blocks begin at `address`.  -> (T, N) float32"""
        if way(kind) == "amx":
            return self._amx.product(kind, address, N, K, x.packed)
        if way(kind) == "integers":
            return self._integers.product(kind, address, N, K, x.tiles(kind))
        out, step = torch.empty((len(x.x), N)), max(1, SLAB // K)
        for first in range(0, N, step):
            last = min(first + step, N)
            y = self._slab(kind, address, K, first, last - first, x)
            out[:, first:last] = y[: len(x.x)]
        return out

    def _slab(self, kind: str, address: int, K: int, first: int, n: int, x: Rows) -> Tensor:
        """Multiply by n rows of the matrix.  -> (T or more, n)"""
        if way(kind) == "bfloat16":
            return functional.linear(x.bfloat16, self._bfloat16(kind, address, K, first, n))
        if kind == "F32":
            return functional.linear(x.x, _numbers(address + 4 * K * first, n, K, torch.float32))
        return functional.linear(x.x, self._float32(kind, address, K, first, n))

    def _bfloat16(self, kind: str, address: int, K: int, first: int, n: int) -> Tensor:
        """Return rows of a matrix in bfloat16, in the scratch; of a BF16 file in place.  -> (n, K)"""
        if kind == "BF16":
            return _numbers(address + 2 * K * first, n, K, torch.bfloat16)
        w = self._room(n, K, torch.bfloat16)
        run(widened(kind, address, K, first, n, w.data_ptr()), threads=self._threads)
        return w

    def _float32(self, kind: str, address: int, K: int, first: int, n: int) -> Tensor:
        """Return rows of a matrix in float32, in the scratch.  -> (n, K)"""
        w, ids = self._room(n, K, torch.float32), torch.arange(first, first + n)
        run(rows(kind, address, K, ids.data_ptr(), n, w.data_ptr()), threads=self._threads)
        return w

    def _room(self, n: int, K: int, dtype: torch.dtype) -> Tensor:
        size = n * K * dtype.itemsize
        if self._scratch.numel() < size:
            self._scratch = torch.empty(size, dtype=torch.uint8)
        return self._scratch[:size].view(dtype).view(n, K)


def _numbers(address: int, n: int, K: int, dtype: torch.dtype) -> Tensor:
    """Return a matrix of numbers where it lies in the file, or a copy where the file does not align it.  -> (n, K)"""
    memory = torch.frombuffer((c_uint8 * (n * K * dtype.itemsize)).from_address(address), dtype=torch.uint8)
    return (memory.clone() if address % dtype.itemsize else memory).view(dtype).view(n, K)
