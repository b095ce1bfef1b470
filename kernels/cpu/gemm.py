"""Multiply many rows by a quantised matrix, in integers, with the scales of its own groups of weights.

T rows of x, N rows of the matrix, K its columns. The matrix is unpacked some rows at a time into panels (`panels`),
which every tile of x is multiplied by (`tiles`). x is rounded to 8 bits
with a scale for every 32 numbers, which costs what ggml's activations cost: 5e-3 to 6e-3 of a product of random
numbers. Where codes are multiplied in 16 bits, x has 15: 3e-5.
"""

from functools import cache
from typing import Any

import torch
from numba import float32, int64
from torch import Tensor

from .functions import Kernel, inlined
from .lanes import absolute, bits, convert, lane, larger, largest, nearest, smaller, total
from .launch import Launch, arguments, run
from .panels import BEGIN, CODES, PLACE, UNPACKED, panel_bytes, unpacked, unpacking
from .simd import f32x16, i8x16, i16x16, i32x4, i32x8, i32x16, load, splat, store
from .slots import LentScratch, call, claim, give
from .tiles import ROWS, WIDTH, Form, nothing, put, step
from .typed import named
from .words import words

PANELS = 64 // WIDTH
"""Panels that are unpacked and multiplied together: an item. They stay in a core's second cache, and x passes once."""
HEAD = 128  # bytes in front of a slot: arguments of the kernel that unpacks
SIX, SEVEN, NINE = words(6), words(7), words(9)
LARGEST = 0
PUT: Any = None
"""How x is rounded: its largest code, and how 16 codes are kept."""
STEP: Any = None
"""The products of one group."""


@inlined
def whole(x, inverse, limit):
    """Round 16 numbers to codes of at most that size; what is no number becomes one."""
    return convert(i32x16, larger(smaller(nearest(x * inverse), splat(f32x16, limit)), splat(f32x16, -limit)))


@inlined
def put_octets(codes, group, row, half, q):
    """Store 16 codes of a row of a tile, as 4 quads."""
    quads = bits(i32x4, convert(i8x16, q))
    for i in range(4):
        store(lane(quads, i), codes + 4 * ((8 * group + 4 * half + i) * ROWS + row))


@inlined
def put_pairs(codes, group, row, half, q):
    """Store 16 codes of a row of a tile, as 8 pairs."""
    pairs = bits(i32x8, convert(i16x16, q))
    for i in range(8):
        store(lane(pairs, i), codes + 4 * ((16 * group + 8 * half + i) * ROWS + row))


def quantise(args, first, end):
    """Round tiles of x to codes, with a scale for every 32, and the sum of every 16 codes."""
    x, T, groups, codes, scales, sums = SIX(args)
    quads = 8 * groups if LARGEST < 256 else 16 * groups
    for tile in range(first, end):
        for row in range(min(ROWS, T - tile * ROWS)):
            for group in range(groups):
                at = x + 128 * (groups * (tile * ROWS + row) + group)
                a, b = load(f32x16, at), load(f32x16, at + 64)
                size, place = largest(larger(absolute(a), absolute(b))), ROWS * (groups * tile + group) + row
                inverse = float32(LARGEST) / size if size > float32(1e-30) else float32(0.0)
                unsound = total((a - a) + (b - b))  # 0, or NaN
                store(size / float32(LARGEST) + unsound, scales + 4 * place)
                p, q = whole(a, inverse, float32(LARGEST)), whole(b, inverse, float32(LARGEST))
                PUT(codes + 4 * quads * ROWS * tile, group, row, 0, p)
                PUT(codes + 4 * quads * ROWS * tile, group, row, 1, q)
                store(total(p), sums + 4 * (2 * place - row))
                store(total(q), sums + 4 * (2 * place - row + ROWS))


def multiply(args, first, end):
    """Multiply stretches of `PANELS` panels by all tiles: an item is one stretch."""
    unpacking, unpacked, panel, record, groups, codes, quads, beside, T = NINE(args)
    out, stride, N, flags, slots, size, count = SEVEN(args + 72)
    number = claim(flags, count)
    slot = slots + number * size
    for i in range(UNPACKED):
        store(load(int64, unpacked + 8 * i), slot + 8 * i)
    store(slot + HEAD, slot + 8 * PLACE)
    for item in range(first, end):
        row = item * PANELS * WIDTH
        panels = (min(N - row, PANELS * WIDTH) + WIDTH - 1) // WIDTH
        store(row, slot + 8 * BEGIN)
        call(unpacking, slot, 0, panels)
        for tile in range((T + ROWS - 1) // ROWS):
            x, near = codes + 4 * ROWS * quads * groups * tile, beside + 8 * ROWS * groups * tile
            for n in range(panels):
                sums, w = nothing(), slot + HEAD + n * panel
                for group in range(groups):
                    sums = STEP(sums, w + record * group, x + 4 * ROWS * quads * group, near + 8 * ROWS * group)
                column = row + WIDTH * n
                put(sums, out + stride * ROWS * tile + 4 * column, stride, T - ROWS * tile, N - column)
    give(flags, number)


@cache
def multiplying(form: Form) -> Kernel:
    """Return the kernel of a form, compiled when it is first wanted."""
    name = f"{form.group}{'_minima' * form.minima}_{'octets' if form.octets else 'pairs'}"
    return named(multiply, name, STEP=step(form))


@cache
def quantising(octets: bool) -> Kernel:
    """Return the kernel that rounds x to codes of 8 or of 15 bits."""
    if octets:
        return named(quantise, "octets", LARGEST=127, PUT=put_octets)
    return named(quantise, "pairs", LARGEST=16383, PUT=put_pairs)


class Tiles:
    """Rows of x rounded to integers, in tiles of ROWS.  (T, K) float32"""

    def __init__(self, x: Tensor, octets: bool, threads: int) -> None:
        (self.T, self.K), tiles = x.shape, -(-x.shape[0] // ROWS)
        groups = self.K // 32
        self.codes = torch.zeros((tiles, groups, ROWS, 32), dtype=torch.int8 if octets else torch.int16)
        self.scales = torch.zeros((tiles, groups, ROWS))
        self.sums = torch.zeros((tiles, 2 * groups, ROWS), dtype=torch.int32)
        x = x.contiguous()
        addresses = (y.data_ptr() for y in (self.codes, self.scales, self.sums))
        args = arguments(x.data_ptr(), self.T, groups, *addresses)
        run(Launch(quantising(octets), args, tiles, 1), threads=threads)
        self._beside = dict[tuple[int, int, bool], Tensor]()

    def beside(self, kind: str) -> Tensor:
        """Return, for every group of a type's weights, ROWS scales and ROWS offsets.  (tiles, groups, 2, ROWS)"""
        codes = CODES[kind]
        key = codes.group, codes.zero, codes.minima
        if key not in self._beside:
            self._beside[key] = self._made(*key)
        return self._beside[key]

    def _made(self, group: int, zero: int, minima: bool) -> Tensor:
        scales, sums = self.scales, self.sums
        if group == 32:
            sums = sums[:, 0::2] + sums[:, 1::2]
        else:
            scales = scales.repeat_interleave(2, 1)
        offsets = scales * sums if minima else (sums * -zero).view(torch.float32)
        return torch.stack((scales, offsets), 2)


class Integers:
    """Multiply by matrices one after another, in a scratch that is kept."""

    def __init__(self, threads: int) -> None:
        self._threads, self._slots = threads, LentScratch(threads)

    def product(self, kind: str, address: int, N: int, K: int, x: Tiles) -> Tensor:
        """Return x w^T.  -> (T, N) float32"""
        form, panel, out = CODES[kind].form, panel_bytes(kind, K), torch.empty((x.T, N))
        matrix = unpacked(kind, address, N, K)
        rows = K // form.group, x.codes.data_ptr(), form.quads, x.beside(kind).data_ptr(), x.T
        slots = self._slots.of(HEAD + PANELS * panel)
        shape = panel, form.record, *rows, out.data_ptr(), 4 * N, N, *slots
        args = arguments(unpacking(kind).address, matrix.ctypes.data, *shape)
        run(Launch(multiplying(form), args, -(-N // (PANELS * WIDTH)), 1), threads=self._threads)
        return out
