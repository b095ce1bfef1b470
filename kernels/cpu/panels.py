"""Unpack rows of a matrix into panels, which `gemm` multiplies: `decode/` read into another order, one kernel a type.

N rows of the matrix, K its columns; WIDTH rows are a panel. 256 weights of each are unpacked at a time, row by row into
a scratch of `ROW` bytes each, and from there turned into the records of their groups. The last ones of a row may be
fewer; records behind them are not looked at, or are zeros.
"""

from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from llava_ref.gguf.types import TYPES

from . import dense_panels
from .compiled import Kernel
from .lanes import convert_unsigned
from .launch import arguments
from .processor import VNNI
from .simd import i16x16, store, words
from .tiles import LANES, NARROW, QUADS, ROW, VECTORS, WIDTH, Form, scratch, turn
from .traced import Number, least, loop, pick, room, when
from .typed import DENSE, layout

UNPACKED, BEGIN, PLACE = 5, 2, 4
"""Words of the arguments: how many, and which are the first row and the place of its panel."""
WEIGHTS = 256  # of a row that are unpacked together
SCALES, MINIMA = 512, 64
"""Where the scales lie in a row of the scratch, and the minima behind them."""
Rooms = tuple[Number, Number]


FITTING = {2: 32, 3: 16, 4: 8, 5: 4, 6: 2}
"""How many pairs of products of codes of so many bits with 8-bit numbers fit 16 bits."""


@dataclass(frozen=True, slots=True)
class Codes:
    """What the codes of a type are."""

    group: int  # weights that share a scale
    bits: int  # of a code without sign
    zero: int  # the code of the weight 0
    minima: bool = False

    @property
    def form(self) -> Form:
        octets = NARROW and self.bits <= (8 if VNNI else 6)
        run = 1 if VNNI or not octets else min(self.group // 4, FITTING[self.bits])
        return Form(self.group, self.minima, octets, run)


# fmt: off
CODES = {
    **dict.fromkeys(sorted(DENSE), Codes(32, 13, 0)),
    "Q4_0": Codes(32, 4, 8), "Q4_1": Codes(32, 4, 0, True), "Q5_0": Codes(32, 5, 16), "Q5_1": Codes(32, 5, 0, True),
    "Q8_0": Codes(32, 8, 128), "IQ4_NL": Codes(32, 8, 128), "MXFP4": Codes(32, 5, 12),
    "Q2_K": Codes(16, 2, 0, True), "Q3_K": Codes(16, 3, 4), "Q4_K": Codes(32, 4, 0, True),
    "Q5_K": Codes(32, 5, 0, True), "Q6_K": Codes(16, 6, 32), "IQ4_XS": Codes(32, 8, 128),
}
# fmt: on


def keep(form: Form, out: Rooms, index: int, q: Number, zero: int, f: Number, m: Number) -> None:
    """Keep 16 codes, of 8 bits, or of 16 as weights with sign; of the first in a group its scale and minimum."""
    codes, scales = out
    if form.octets:
        store(q, codes + index)
    else:
        store(convert_unsigned(i16x16, q) - zero, codes + 2 * index)
    if index % form.group == 0:
        store(f, scales + index // form.group * 4)
    if index % form.group == 0 and form.minima:
        store(-m, scales + MINIMA + index // form.group * 4)


def unpack_row(kind: str, at: Number, count: Number, codes: Number, scales: Number) -> None:
    """Unpack `count` blocks of a row, which are 256 weights at most."""
    form, size = CODES[kind].form, TYPES[kind]
    put, groups = partial(keep, form), size.weights // form.group
    for b in loop(0, count):
        out = codes + b * size.weights * (1 if form.octets else 2), scales + 4 * groups * b
        layout(kind)(at + b * size.bytes, put, out)


def unpack_numbers(kind: str, at: Number, count: Number, codes: Number, scales: Number, copy: Number) -> None:
    """Unpack `count` weights of a row, 256 at most; behind them are zeros."""
    size = TYPES[kind].bytes
    with when(count < WEIGHTS):
        dense_panels.filled_up(at, size * count, copy, size * WEIGHTS)
    dense_panels.block(kind, pick(count < WEIGHTS, copy, at), codes, scales)


def gather(form: Form, room: Number, out: Number) -> None:
    """Write the records of 256 weights of WIDTH rows."""
    beside, groups = form.quads * QUADS, WEIGHTS // form.group
    for v in range(VECTORS):
        rows, to = room + v * LANES * ROW, out + 4 * LANES * v
        for g in range(0, groups, 4):
            turn(rows + SCALES + 4 * g, ROW, to + g * form.record + beside, form.record)
            if form.minima:
                turn(rows + SCALES + MINIMA + 4 * g, ROW, to + g * form.record + beside + 4 * WIDTH, form.record)
        for g in range(groups):
            for quad in range(0, form.quads, 4):
                turn(rows + 4 * (g * form.quads + quad), ROW, to + g * form.record + quad * QUADS, QUADS)


def unpack(kind: str, args: Number, first: Number, end: Number) -> None:
    """Unpack columns of a panel: an item is 256. A panel that ends behind the matrix repeats its last row."""
    blocks, row_bytes, begin, last, out = words(args, UNPACKED)
    form, size, rooms, copy = CODES[kind].form, TYPES[kind], scratch(), room(WEIGHTS // 16)
    step, of_item = WEIGHTS // size.weights * size.bytes, WEIGHTS // form.group * form.record
    for k in loop(first, end):
        count = least(step, row_bytes - k * step) // size.bytes
        for r in loop(0, WIDTH):
            at, codes = blocks + least(begin + r, last) * row_bytes + k * step, rooms + r * ROW
            if kind in DENSE:
                unpack_numbers(kind, at, count, codes, codes + SCALES, copy)
            else:
                unpack_row(kind, at, count, codes, codes + SCALES)
        gather(form, rooms, out + (k - first) * of_item)


@cache
def unpacking(kind: str) -> Kernel:
    """Return the kernel of a type, compiled when it is first wanted."""
    return Kernel(f"panels.unpack_{kind.lower()}", partial(unpack, kind))


def unpacked(kind: str, address: int, N: int, K: int) -> np.ndarray:
    """Return the arguments of a matrix's `unpacking`, but for the first row (word `BEGIN`) and the place (`PLACE`)."""
    return arguments(address, K // TYPES[kind].weights * TYPES[kind].bytes, 0, N - 1, 0)
