"""Multiply many rows by a quantised matrix, in integers, with the scales of its own groups of weights.

T rows of x, N rows of the matrix, K its columns. Some columns of a few rows of the matrix at a time are unpacked into a
panel (`panels`), which every tile of x is multiplied by (`tiles`); the sums of the next columns are added to those that
are there. x is rounded to 8 bits with a scale for every 32 numbers, which costs what ggml's activations cost: 5e-3 to
6e-3 of a product of random numbers. Where codes are multiplied in 16 bits, x has 14 and a sign: 3e-5.
"""

from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from .activations import SMALLEST, WHOLE
from .compiled import Kernel
from .dense_panels import INFINITE, SIZE
from .lanes import bits, convert, fma, lane, larger, largest, total
from .launch import Launch, arguments, run
from .panels import BEGIN, CODES, PLACE, UNPACKED, WEIGHTS, unpacked, unpacking
from .simd import f32, f32x16, i8x16, i16x16, i32x4, i32x8, i32x16, i64, load, splat, store, words
from .slots import LentScratch, call, claim, give
from .tiles import FLOATS, NARROW, ROWS, VECTORS, WIDTH, Form, copy, put, step, sums_at
from .traced import Cell, Number, Value, least, loop, otherwise, pick, room, when

PANELS = 64 // WIDTH
"""Panels that are an item: the same columns of x, which the second cache has, for one after another."""
DEPTH = {False: 16, True: 32}
"""Groups of 32 columns that are unpacked and multiplied together, of pairs and of octets: a core's first cache has
such a panel, and every tile of x passes by."""
HEAD = 128  # bytes in front of a slot: arguments of the kernel that unpacks


def whole(x: Value, inverse: Value) -> Value:
    """Round 16 numbers times a factor to whole ones, of at most 16 bits."""
    return bits(i32x16, fma(x, splat(f32x16, inverse), splat(f32x16, WHOLE))) - bits(i32x16, splat(f32x16, WHOLE))


def put_octets(codes: Number, row: Number, half: int, q: Value) -> None:
    """Store 16 codes of a row of a tile, as 4 quads."""
    quads = bits(i32x4, convert(i8x16, q))
    for i in range(4):
        store(lane(quads, i), codes + 4 * ((4 * half + i) * ROWS + row))


def put_pairs(codes: Number, row: Number, half: int, q: Value) -> None:
    """Store 16 codes of a row of a tile, as 8 pairs."""
    pairs = bits(i32x8, convert(i16x16, q))
    for i in range(8):
        store(lane(pairs, i), codes + 4 * ((8 * half + i) * ROWS + row))


def scale_of(a: Value, b: Value, limit: float) -> tuple[Value, Value]:
    """Return the scale of 32 numbers, and what to multiply by; it is NaN where a number is infinite or none."""
    size = largest(larger(bits(i32x16, a) & SIZE, bits(i32x16, b) & SIZE))
    number, sound = bits(f32, size), size < INFINITE
    inverse = pick((number > SMALLEST) & sound, limit / number, 0.0)
    return pick(sound, number / limit, float("nan")), inverse


def quantise(octets: bool, args: Number, first: Number, end: Number) -> None:
    """Round tiles of x to codes, with a scale for every 32, and the sum of every 16 codes where a type asks for it.

    Where a tile has more rows than there are, the last one is repeated."""
    x, T, groups, codes, scales, sums, tiles = words(args, 7)
    limit, put, quads = (127.0, put_octets, 8) if octets else (16383.0, put_pairs, 16)
    for tile in loop(first, end):
        for row in loop(0, ROWS):
            for group in loop(0, groups):
                at = x + 128 * (groups * least(tile * ROWS + row, T - 1) + group)
                index, a, b = place(tile, group, tiles, groups, octets), load(f32x16, at), load(f32x16, at + 64)
                scale, inverse = scale_of(a, b, limit)
                store(scale, scales + 4 * (ROWS * index + row))
                for half, numbers in enumerate((a, b)):
                    q = whole(numbers, inverse)
                    put(codes + 4 * quads * ROWS * index, row, half, q)
                    if octets or not NARROW:
                        store(total(q), sums + 4 * (ROWS * (2 * index + half) + row))


def place(tile: Number, group: Number, tiles: Number, groups: Number, octets: bool) -> Value:
    """Return where a group of a tile lies: the first DEPTH groups of all tiles first, then their next ones."""
    depth = DEPTH[octets]
    start = group - group % depth
    return tiles * start + tile * least(depth, groups - start) + group - start


def begin(sums: list[Cell], at: Number, stride: Number, more: Value) -> None:
    """Begin sums with zeros, or with what is there."""
    with when(more):
        for cell, lanes in zip(sums, sums_at(at, stride), strict=True):
            cell.value = lanes
    with otherwise(more):
        for cell in sums:
            cell.value = splat(FLOATS, 0.0)


def multiply_tile(
    form: Form, groups: Number, w: Number, codes: Number, beside: Number, out: Number, stride: Number, more: Value
) -> None:
    """Multiply groups of a panel by those of a tile of x, and add that to `out` where there is more."""
    sums = [Cell(splat(FLOATS, 0.0)) for _ in range(ROWS * VECTORS)]
    begin(sums, out, stride, more)
    for group in loop(0, groups):
        at = w + form.record * group, codes + 4 * ROWS * form.quads * group, beside + 8 * ROWS * group
        for cell, lanes in zip(sums, step(form, [cell.value for cell in sums], *at), strict=True):
            cell.value = lanes
    put([cell.value for cell in sums], out, stride)


def multiply(form: Form, args: Number, first: Number, end: Number) -> None:
    """Multiply stretches of `PANELS` panels by all tiles: an item is one stretch."""
    unpacking, unpacked, groups, codes, beside, T = words(args, 6)
    out, stride, N, flags, slots, size, count = words(args + 48, 7)
    number = claim(flags, count)
    slot = slots + number * size
    items = WEIGHTS // form.group
    edge, deep = room(-(-4 * ROWS * WIDTH // 64)), DEPTH[form.octets] * 32 // form.group
    tiles = (T + ROWS - 1) // ROWS
    for i in range(UNPACKED):
        store(load(i64, unpacked + 8 * i), slot + 8 * i)
    store(slot + HEAD, slot + 8 * PLACE)
    for item in loop(first, end):
        for start in loop(0, groups, deep):
            for row in loop(item * PANELS * WIDTH, least((item + 1) * PANELS * WIDTH, N), WIDTH):
                here = least(groups - start, deep)
                store(row, slot + 8 * BEGIN)
                call(unpacking, slot, start // items, (start + here + items - 1) // items)
                for tile in loop(0, tiles):
                    at = tiles * start + tile * here
                    x, near = codes + 4 * ROWS * form.quads * at, beside + 8 * ROWS * at
                    to, rows, columns = out + stride * ROWS * tile + 4 * row, T - ROWS * tile, N - row
                    whole = (rows >= ROWS) & (columns >= WIDTH)
                    with when(whole):
                        multiply_tile(form, here, slot + HEAD, x, near, to, stride, start > 0)
                    with otherwise(whole):
                        with when(start > 0):
                            copy(to, stride, edge, 4 * WIDTH, rows, columns)
                        multiply_tile(form, here, slot + HEAD, x, near, edge, 4 * WIDTH, start > 0)
                        copy(edge, 4 * WIDTH, to, stride, rows, columns)
    give(flags, number)


@cache
def multiplying(form: Form) -> Kernel:
    """Return the kernel of a form, compiled when it is first wanted."""
    kind = f"octets_{form.run}" if form.octets else "pairs"
    name = f"gemm.multiply_{form.group}{'_minima' * form.minima}_{kind}"
    return Kernel(name, partial(multiply, form))


@cache
def quantising(octets: bool) -> Kernel:
    """Return the kernel that rounds x to codes of 8 or of 15 bits."""
    return Kernel(f"gemm.quantise_{'octets' if octets else 'pairs'}", partial(quantise, octets))


class Tiles:
    """Rows of x rounded to integers, in tiles of ROWS.  (T, K) float32"""

    def __init__(self, x: Tensor, octets: bool, threads: int) -> None:
        (self.T, self.K), tiles = x.shape, -(-x.shape[0] // ROWS)
        groups = -(-self.K // 32)
        self.codes = torch.empty((tiles * groups, ROWS, 32), dtype=torch.int8 if octets else torch.int16)
        self.scales = torch.empty((tiles * groups, ROWS))
        self.sums = torch.empty((tiles * groups, 2, ROWS), dtype=torch.int32)
        x = (pad(x, (0, 32 * groups - self.K)) if self.K % 32 else x).contiguous()
        addresses = (y.data_ptr() for y in (self.codes, self.scales, self.sums))
        args = arguments(x.data_ptr(), self.T, groups, *addresses, tiles)
        run(Launch(quantising(octets), args, tiles, 1), threads=threads)
        self._beside = dict[tuple[int, int, bool], Tensor]()

    def beside(self, kind: str) -> Tensor:
        """Return, for every group of a type's weights, ROWS scales and ROWS offsets.  (groups, 2, ROWS)"""
        codes = CODES[kind]
        key = codes.group, codes.zero, codes.minima
        if key not in self._beside:
            self._beside[key] = self._made(*key)
        return self._beside[key]

    def _made(self, group: int, zero: int, minima: bool) -> Tensor:
        scales, sums = self.scales, self.sums
        if group == 32:
            sums = sums[:, 0] + sums[:, 1]
        else:
            scales, sums = scales.repeat_interleave(2, 0), sums.view(-1, ROWS)
        offsets = scales * sums if minima else (sums * -zero).view(torch.float32)
        return torch.stack((scales, offsets), 1)


class Integers:
    """Multiply by matrices one after another, in a scratch that is kept."""

    def __init__(self, threads: int) -> None:
        self._threads, self._slots = threads, LentScratch(threads)

    def product(self, kind: str, address: int, N: int, K: int, x: Tiles) -> Tensor:
        """Return x w^T.  -> (T, N) float32"""
        form, out = CODES[kind].form, torch.empty((x.T, N))
        matrix = unpacked(kind, address, N, K)
        given = -(-K // form.group), x.codes.data_ptr(), x.beside(kind).data_ptr(), x.T
        slots = self._slots.of(HEAD + DEPTH[form.octets] * 32 // form.group * form.record)
        args = arguments(unpacking(kind).address, matrix.ctypes.data, *given, out.data_ptr(), 4 * N, N, *slots)
        run(Launch(multiplying(form), args, -(-N // (PANELS * WIDTH)), 1), threads=self._threads)
        return out
