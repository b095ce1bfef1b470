"""Normalise rows, and add them.

A row is one item: it is read twice or three times, but from memory only once. Each sum is in four times 16 lanes, then
number by number, whatever the width and whoever else is computed.
"""

from .compiled import kernel
from .lanes import fma, square_root, total
from .launch import Launch, arguments
from .simd import f32, f32x16, load, real, splat, store, words
from .traced import Cell, Number, Value, least, loop, otherwise, when

BLOCK = 4096  # numbers of an item of `add`
WORTH = 8192  # numbers that are worth a thread


def _sum(row: Number, width: Number, mean: Number = None) -> Value:
    """Return the sum of a row, or of the squares of x - mean."""
    lanes = [Cell(splat(f32x16, 0.0)) for _ in range(4)]
    end, last = row + 4 * (width - width % 64), row + 4 * width
    for at in loop(row, end, 256):
        for i, lane in enumerate(lanes):
            x = load(f32x16, at + 64 * i)
            lane.value = lane.value + x if mean is None else fma(x - mean, x - mean, lane.value)
    a, b, c, d = (lane.value for lane in lanes)
    found = Cell(total((a + b) + (c + d)))
    for at in loop(end, last, 4):
        one = load(f32, at)
        found.value = found.value + (one if mean is None else (one - mean) * (one - mean))
    return found.value


def _inverse_root(squares: Number, width: Number, eps: Number) -> Value:
    """Return 1 / sqrt(squares / width + eps)."""
    return 1.0 / square_root(squares / width + eps)


def _norm(x: Number, gain: Number, out: Number, width: Number, eps: Number) -> None:
    scale, whole = _inverse_root(_sum(x, width, 0.0), width, eps), 4 * (width - width % 16)
    for kind, first, end in (f32x16, 0, whole), (f32, whole, 4 * width):
        for i in loop(first, end, 64 if kind.lanes else 4):
            store(load(kind, x + i) * scale * load(kind, gain + i), out + i)


@kernel
def normed(args: Number, first: Number, end: Number) -> None:
    """Divide rows by the root of their mean square, and multiply by the gain."""
    x, gain, out, width, eps = words(args, 5)
    for row in loop(4 * width * first, 4 * width * end, 4 * width):
        _norm(x + row, gain, out + row, width, real(eps))


@kernel
def centred(args: Number, first: Number, end: Number) -> None:
    """Move rows to mean 0 and mean square 1, multiply by the gain, and add the bias, where there is one."""
    x, gain, bias, out, width, eps = words(args, 6)
    whole = 4 * (width - width % 16)
    for row in loop(4 * width * first, 4 * width * end, 4 * width):
        mean = _sum(x + row, width) / width
        scale = _inverse_root(_sum(x + row, width, mean), width, real(eps))
        for kind, begin, behind in (f32x16, 0, whole), (f32, whole, 4 * width):
            for i in loop(begin, behind, 64 if kind.lanes else 4):
                y = (load(kind, x + row + i) - mean) * scale * load(kind, gain + i)
                with when(bias != 0):
                    store(y + load(kind, bias + i), out + row + i)
                with otherwise(bias != 0):
                    store(y, out + row + i)


@kernel
def added(args: Number, first: Number, end: Number) -> None:
    """Add blocks of numbers."""
    x, y, out, n = words(args, 4)
    start, last = BLOCK * first, least(BLOCK * end, n)
    whole = last - (last - start) % 16
    for kind, begin, behind in (f32x16, 4 * start, 4 * whole), (f32, 4 * whole, 4 * last):
        for at in loop(begin, behind, 64 if kind.lanes else 4):
            store(load(kind, x + at) + load(kind, y + at), out + at)


def rms_norm(x: int, gain: int, out: int, rows: int, width: int, eps: float) -> Launch:
    """Divide each row by its root mean square, and multiply by the gain.  (rows, width) (width,) -> (rows, width)

    Arrays are addresses of float32; `out` may be `x`."""
    return Launch(normed, arguments(x, gain, out, width, float(eps)), rows, max(1, WORTH // width))


def layer_norm(x: int, gain: int, bias: int, out: int, rows: int, width: int, eps: float) -> Launch:
    """Move each row to mean 0 and mean square 1, times the gain, plus the bias, 0 for none.

    (rows, width) (width,) (width,) -> (rows, width). Arrays are addresses of float32; `out` may be `x`."""
    return Launch(centred, arguments(x, gain, bias, out, width, float(eps)), rows, max(1, WORTH // width))


def add(x: int, y: int, out: int, n: int) -> Launch:
    """Add n numbers at addresses of float32; `out` may be either."""
    return Launch(added, arguments(x, y, out, n), -(-n // BLOCK), WORTH // BLOCK)
