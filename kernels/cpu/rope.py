"""Turn pairs of channels by rotary angles.   T rows, H heads, dh head size.

An item is one head of one row. Every pair is read before it is written, so a head may be turned in place.
"""

from llava_ref.ops.arrays import Pairs

from .compiled import Kernel, kernel
from .lanes import shuffle_two
from .launch import Launch, arguments
from .simd import f32, f32x16, i64, load, store, words
from .traced import Number, loop

WORTH = 8192  # numbers that are worth a thread
_BY_TURNS = [place for i in range(16) for place in (i, i + 16)]
EVENS, ODDS = shuffle_two(*range(0, 32, 2)), shuffle_two(*range(1, 32, 2))
LOW_BY_TURNS, HIGH_BY_TURNS = shuffle_two(*_BY_TURNS[:16]), shuffle_two(*_BY_TURNS[16:])


def _turn_one(x: Number, out: Number, first: Number, second: Number, cos: Number, sin: Number) -> None:
    """Turn the pair whose channels lie `first` and `second` bytes behind x."""
    a, b, c, s = load(f32, x + first), load(f32, x + second), load(f32, cos), load(f32, sin)
    store(a * c - b * s, out + first)
    store(a * s + b * c, out + second)


@kernel
def adjacent(args: Number, first: Number, end: Number) -> None:
    """Turn channels 2i and 2i + 1."""
    x, out, cos, sin, positions, H, half = words(args, 7)
    for item in loop(first, end):
        row, at = 4 * half * load(i64, positions + 8 * (item // H)), 8 * half * item
        whole = 4 * (half - half % 16)
        for i in loop(0, whole, 64):
            here, c, s = at + 2 * i, load(f32x16, cos + row + i), load(f32x16, sin + row + i)
            low, high = load(f32x16, x + here), load(f32x16, x + here + 64)
            a, b = EVENS(low, high), ODDS(low, high)
            a, b = a * c - b * s, a * s + b * c
            store(LOW_BY_TURNS(a, b), out + here)
            store(HIGH_BY_TURNS(a, b), out + here + 64)
        for i in loop(whole, 4 * half, 4):
            _turn_one(x, out, at + 2 * i, at + 2 * i + 4, cos + row + i, sin + row + i)


@kernel
def halves(args: Number, first: Number, end: Number) -> None:
    """Turn channels i and i + dh / 2."""
    x, out, cos, sin, positions, H, half = words(args, 7)
    for item in loop(first, end):
        row, at = 4 * half * load(i64, positions + 8 * (item // H)), 8 * half * item
        behind, whole = at + 4 * half, 4 * (half - half % 16)
        for i in loop(0, whole, 64):
            a, b = load(f32x16, x + at + i), load(f32x16, x + behind + i)
            c, s = load(f32x16, cos + row + i), load(f32x16, sin + row + i)
            store(a * c - b * s, out + at + i)
            store(a * s + b * c, out + behind + i)
        for i in loop(whole, 4 * half, 4):
            _turn_one(x, out, at + i, behind + i, cos + row + i, sin + row + i)


KERNELS: dict[Pairs, Kernel] = {"adjacent": adjacent, "halves": halves}


def rope(
    x: int, out: int, cos: int, sin: int, positions: int, rows: int, n_head: int, head_size: int, pairs: Pairs
) -> Launch:
    """Turn each pair of channels by the angle of the row's position.  (T, H, dh) (room, dh/2) (room, dh/2) (T,)

    x, out, cos, sin: addresses of float32; `out` may be `x`. positions: address of int64, the rows of cos and sin.
    Raises ValueError for a head of an odd size."""
    if head_size % 2:
        raise ValueError(f"head_size: {head_size}, expected an even number")
    args = arguments(x, out, cos, sin, positions, n_head, head_size // 2)
    return Launch(KERNELS[pairs], args, rows * n_head, max(1, WORTH // head_size))
