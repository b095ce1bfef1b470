"""Multiply rows of a quantised matrix by rows of activations, inside a program: what the kernels of matvec.py share.

A row of x is two 8-bit terms (activations.py), a weight up to 8 bits: two dp4a multiply four weights. Rows of planes
are padded with zeros to whole trips, so that nothing is masked.

A thread's unit is a group of 32 weights of a row, 16 of 8-bit types: one load of 16 bytes (8 of 2-bit types). A warp
has 32 units side by side, and of several rows, so that what it loads of x serves them all. Weights are loaded a trip or
two before they are used, and a program of 8 warps needs no barrier until its rows are summed. That depends on the
compiler in two points: tiles of x have fewer elements than the program has threads, and so are loaded in the layout of
their use; and hints bring the tiles of all planes into one layout (see `_locate`). Triton 3.6 and 3.9 agree in both.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .quads import dp4a, factors, four, quads

LANES = tl.constexpr(32)
"""Units of a row in a trip."""


@triton.jit
def _locate(planes, row, TRIPS, BITS: tl.constexpr, HIGH: tl.constexpr):
    """Point at what the first trip reads of the rows `row` (R,): tiles of pointers into the planes that there are.

    Hints keep the lanes of a warp along a row, and give a thread what is one unit's and not a wider vector: a tile in
    another layout than the quants' would cross shared memory every trip. A group's scale may stand for two units, and
    one of `supers` for eight: there the hint of contiguity is for the order of axes only, for `multiple_of` 1 rules a
    vector out."""
    quants, high, scales, supers = planes
    PARTS: tl.constexpr = 2 if BITS == 8 else 1
    WORDS: tl.constexpr = 2 if BITS == 2 else 4
    unit, first = tl.arange(0, LANES)[None, :], row.to(tl.int64)[:, None] * (TRIPS * LANES)
    words = first * WORDS + tl.arange(0, LANES * WORDS)[None, :]
    group = tl.max_contiguous(tl.multiple_of(first // PARTS + unit // PARTS, (1, 1)), (1, 2))
    at = (quants + tl.multiple_of(words, (1, WORDS)), scales + group)
    if HIGH > 0:
        at = at + (high + tl.multiple_of(first * HIGH + tl.arange(0, LANES * HIGH)[None, :], (1, HIGH)),)
    if supers is not None:
        at = at + (supers + tl.max_contiguous(tl.multiple_of(first // 8 + unit // 8, (1, 1)), (1, 2)),)
    return at


@triton.jit
def _load(at, trip, TRIPS, BITS: tl.constexpr, HIGH: tl.constexpr):
    """Load what `at` points at, moved on by `trip`; nothing behind the last trip."""
    PARTS: tl.constexpr = 2 if BITS == 8 else 1
    WORDS: tl.constexpr = 2 if BITS == 2 else 4
    inside = tl.full([1, 1], trip, tl.int32) < TRIPS
    out = (tl.load(at[0] + trip * (LANES * WORDS), inside), tl.load(at[1] + trip * (LANES // PARTS), inside))
    if HIGH > 0:
        out = out + (tl.load(at[2] + trip * (LANES * HIGH), inside),)
    if len(at) > 2 + (HIGH > 0):
        out = out + (tl.load(at[2 + (HIGH > 0)] + trip * (LANES // 8), inside),)
    return out


@triton.jit
def _decode(held, BITS: tl.constexpr, HIGH: tl.constexpr, TABLE: tl.constexpr, SCALE: tl.constexpr, REAL: tl.constexpr):
    """Turn what was loaded into quads and factors."""
    R: tl.constexpr = held[0].shape[0]
    high, supers = (), None
    words = tl.split(held[0].reshape(R, LANES, 2)) if BITS == 2 else four(held[0].reshape(R, LANES, 4))
    if HIGH == 1:
        high = (held[2],)
    if HIGH == 2:
        high = tl.split(held[2].reshape(R, LANES, 2))
    if len(held) > 2 + (HIGH > 0):
        supers = held[2 + (HIGH > 0)]
    return quads(words, high, BITS, HIGH, TABLE, REAL), factors(held[1], supers, SCALE)


@triton.jit
def _x_words(term, trip, PARTS: tl.constexpr):
    """Load what a trip needs of one term of x: a tile (1, LANES) a word.  `trip` counts over all rows"""
    unit = (trip * LANES + tl.arange(0, LANES))[None, :, None]
    at = term + unit * (8 // PARTS) + tl.arange(0, 4)[None, None, :]
    out = four(tl.load(at))
    if PARTS == 1:
        out = out + four(tl.load(at + 4))
    return out


@triton.jit
def _multiply(quad, a, b, FIRST: tl.constexpr, END: tl.constexpr, REAL: tl.constexpr):
    """Sum quads FIRST..END-1 times both terms of x, a + b / 254."""
    s = tl.zeros(quad[0].shape, tl.int32)
    t = tl.zeros(quad[0].shape, tl.int32)
    for i in tl.static_range(FIRST, END):
        s = dp4a(quad[i], a[i], s, REAL)
        t = dp4a(quad[i], b[i], t, REAL)
    return s.to(tl.float32) + t.to(tl.float32) * (1.0 / 254.0)


@triton.jit
def _add_trip(
    total, quad, factor, x, trip, BITS: tl.constexpr, ZERO: tl.constexpr, SCALE: tl.constexpr, REAL: tl.constexpr
):
    """Add to total (R, LANES) the products of a trip's units with one row of x.  `trip` counts over all rows of x

    Zeros and minima are taken off by way of the sums of the same two terms, so that no rounding of x enters."""
    first, second, scale, sums = x
    s0, s1, m0, m1 = factor
    PARTS: tl.constexpr = 2 if BITS == 8 else 1
    HALVES: tl.constexpr = SCALE == "k16" or SCALE == "k16m"
    MINIMUM: tl.constexpr = SCALE == "f16x2" or SCALE == "k" or SCALE == "k16m"
    a, b = _x_words(first, trip, PARTS), _x_words(second, trip, PARTS)
    unit = (trip * LANES + tl.arange(0, LANES))[None, :]
    d = tl.load(scale + unit // PARTS)
    y0 = d * _multiply(quad, a, b, 0, 4 if HALVES else 8 // PARTS, REAL)
    y1 = d * _multiply(quad, a, b, 4, 8, REAL) if HALVES else 0.0
    if ZERO > 0 or MINIMUM:
        x0, x1 = tl.split(tl.load(sums + unit[:, :, None] * 2 + tl.arange(0, 2)[None, None, :]))
        if not HALVES:
            x0 += x1
        if ZERO > 0:
            y0 -= ZERO * x0
        if MINIMUM:
            total -= m0 * x0
        if HALVES and ZERO > 0:
            y1 -= ZERO * x1
        if HALVES and MINIMUM:
            total -= m1 * x1
    total += s0 * y0
    if HALVES:
        total += s1 * y1
    return total


@triton.jit
def products(
    x, planes, row, m, M, TRIPS, COUNT: tl.constexpr, AHEAD: tl.constexpr, BITS: tl.constexpr, HIGH: tl.constexpr,
    ZERO: tl.constexpr, TABLE: tl.constexpr, SCALE: tl.constexpr, PDL: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Multiply the rows `row` (R,) of a matrix by rows m .. m + COUNT - 1 of x, the last one again behind it.

    -> COUNT tiles (R,)"""
    at = _locate(planes, row, TRIPS, BITS, HIGH)
    held, totals, out = (_load(at, 0, TRIPS, BITS, HIGH),), (), ()
    for i in tl.static_range(1, AHEAD):
        held = held + (_load(at, i, TRIPS, BITS, HIGH),)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for _ in tl.static_range(COUNT):
        totals = totals + (tl.zeros((row.shape[0], LANES), tl.float32),)
    for trip in tl.range(0, TRIPS, loop_unroll_factor=AHEAD):
        quad, factor = _decode(held[0], BITS, HIGH, TABLE, SCALE, REAL)
        held = held[1:] + (_load(at, trip + AHEAD, TRIPS, BITS, HIGH),)
        sums = ()
        for i in tl.static_range(COUNT):
            of_row = tl.minimum(m + i, M - 1) * TRIPS + trip
            sums = sums + (_add_trip(totals[i], quad, factor, x, of_row, BITS, ZERO, SCALE, REAL),)
        totals = sums
    for i in tl.static_range(COUNT):
        out = out + (tl.sum(totals[i], 1),)
    return out
