"""Unpack rows of a matrix into panels, which `gemm` multiplies: `decode/` read into another order, one kernel a type.

N rows of the matrix, K its columns; WIDTH rows are a panel. A block of WIDTH rows is unpacked at a time, row by row
into a scratch of `ROW` bytes each, and from there turned into the records of its groups.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numba import float32

from llava_ref.gguf.types import TYPES

from .functions import Kernel, inlined
from .lanes import convert_unsigned
from .launch import arguments
from .simd import VNNI, i16x16, load, store
from .tiles import LANES, NARROW, QUADS, ROW, VECTORS, WIDTH, Form, scratch, turn
from .typed import named
from .words import words

UNPACKED, BEGIN, PLACE = 12, 2, 11
TWELVE = words(UNPACKED)
SCALES = 512
"""Where the 16 scales of a block lie in a row of the scratch, and behind them its minima."""


@dataclass(frozen=True, slots=True)
class Codes:
    """What the codes of a type are."""

    group: int  # weights that share a scale
    bits: int  # of a code without sign
    zero: int  # the code of the weight 0
    minima: bool = False

    @property
    def form(self) -> Form:
        fits = VNNI or self.bits <= (5 if self.group == 32 else 6)
        return Form(self.group, self.minima, NARROW and fits)


# fmt: off
CODES = {
    "Q4_0": Codes(32, 4, 8), "Q4_1": Codes(32, 4, 0, True), "Q5_0": Codes(32, 5, 16), "Q5_1": Codes(32, 5, 0, True),
    "Q8_0": Codes(32, 8, 128), "IQ4_NL": Codes(32, 8, 128), "MXFP4": Codes(32, 5, 12),
    "Q2_K": Codes(16, 2, 0, True), "Q3_K": Codes(16, 3, 4), "Q4_K": Codes(32, 4, 0, True),
    "Q5_K": Codes(32, 5, 0, True), "Q6_K": Codes(16, 6, 32), "IQ4_XS": Codes(32, 8, 128),
}
# fmt: on


@inlined
def put_factors(out, index, f, m):
    """Keep the scale and the minimum of 16 weights."""
    store(f, out + SCALES + index // 4)
    store(float32(0.0) - m, out + SCALES + 64 + index // 4)


@inlined
def put_octets(out, index, q, zero, f, m):
    """Keep 16 codes of 8 bits."""
    store(q, out + index)
    put_factors(out, index, f, float32(m))


@inlined
def put_pairs(out, index, q, zero, f, m):
    """Keep 16 codes, as weights of 16 bits with sign."""
    store(convert_unsigned(i16x16, q) - zero, out + 2 * index)
    put_factors(out, index, f, float32(m))


BLOCK: Any = None
PUT: Any = None
"""Of a type: its layout, and how codes are kept."""


@inlined
def gather(room, out, weights, group, minima, quads, record):
    """Write the records of a block of WIDTH rows."""
    for g in range(weights // group):
        at, place = out + g * record + quads * QUADS, room + SCALES + g * group // 4
        for r in range(WIDTH):
            store(load(float32, place + r * ROW), at + 4 * r)
        if minima:
            for r in range(WIDTH):
                store(load(float32, place + 64 + r * ROW), at + 4 * (WIDTH + r))
        for quad in range(0, quads, 4):
            for v in range(VECTORS):
                source = room + v * LANES * ROW + 4 * (g * quads + quad)
                turn(source, ROW, out + g * record + quad * QUADS + 4 * LANES * v, QUADS)


def unpack(args, first, end):
    """Unpack panels `first` to `end` - 1 from a row on; a panel that ends behind the matrix repeats its last row."""
    blocks, row_bytes, begin, last, count, size, weights, group, minima, quads, record, panels = TWELVE(args)
    room, groups = scratch(), weights // group
    for panel in range(first, end):
        for k in range(count):
            for r in range(WIDTH):
                row = min(begin + panel * WIDTH + r, last)
                BLOCK(blocks + row * row_bytes + k * size, PUT, room + r * ROW)
            out = panels + (panel * count + k) * groups * record
            gather(room, out, weights, group, minima, quads, record)


@cache
def unpacking(kind: str) -> Kernel:
    """Return the kernel of a type, compiled when it is first wanted."""
    block = import_module(f"{__package__}.decode.{kind.lower()}").block
    return named(unpack, kind.lower(), BLOCK=block, PUT=put_octets if CODES[kind].form.octets else put_pairs)


def panel_bytes(kind: str, K: int) -> int:
    """Return the bytes of a panel of rows of K weights."""
    form = CODES[kind].form
    return K // form.group * form.record


def unpacked(kind: str, address: int, N: int, K: int) -> np.ndarray:
    """Return the arguments of a matrix's `unpacking`, but for the first row (word `BEGIN`) and the place (`PLACE`)."""
    form, block = CODES[kind].form, TYPES[kind]
    count = K // block.weights
    shape = count, block.bytes, block.weights, form.group, int(form.minima), form.quads, form.record
    return arguments(address, count * block.bytes, 0, N - 1, *shape, 0)
