"""Multiply queries by keys, and weights by values, for a few query heads that share them.

q and sums are float32, keys and values float16. As many accumulators are kept in registers as a vector has lanes: 1, 2
or 4 heads beside as many keys, or vectors of a value, as that leaves, so that what is read is converted once.
"""

from typing import Any

from .lanes import fma, from_half
from .llvm import Kind, shuffled
from .processor import SET
from .simd import f32, load, load_some, prefetch, splat, store
from .traced import Cell, Number, Value, loop, operation

TILE, REGISTERS = (16, 32) if SET == "avx512" else (8, 16)
VECTOR, HALVES = Kind("f32", TILE), Kind("i16", TILE)
STEPS = 16
"""Vectors of a query that are done without a loop: its last turn would be waited for as long as for some turns."""


@operation
def sums(builder, *vectors):
    """Return the sums of the lanes of a power of two of vectors, side by side."""
    group = TILE
    while group > 1:
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True)) if len(vectors) > 1 else [(vectors[0], vectors[0])]
        n = vectors[0].type.count
        lower = [i for i in range(n) if i % group < group // 2]
        both = lower if len(vectors) == 1 else lower + [n + i for i in lower]
        upper = [i + group // 2 for i in both]
        vectors = [builder.fadd(shuffled(builder, a, b, both), shuffled(builder, a, b, upper)) for a, b in pairs]
        group //= 2
    return vectors[0]


@operation
def piece(builder, x, first, count):
    """Return `count` lanes from `first` on; both are constants."""
    return shuffled(builder, x, x, range(first.constant, first.constant + count.constant))


def halves(address: Number, count: Any = None) -> Value:
    """Read TILE float16, or the first `count` and zeros, as float32."""
    return from_half(load(HALVES, address) if count is None else load_some(HALVES, count, address))


def fetched(address: Number, size: int) -> None:
    """Ask for `size` bytes that are wanted soon."""
    for at in range(0, size, 64):
        prefetch(address + at)


def dots(
    heads: int,
    width: int,
    q: Number,
    q_row: Number,
    key: Number,
    key_row: Number,
    out: Number,
    out_row: Number,
    ahead: Number,
) -> None:
    """Write the scores q k of `heads` queries and TILE / heads keys, and ask for as much memory as the keys have.

    Rows of q, of keys and of scores lie so many bytes apart."""
    keys, part, whole = TILE // heads, STEPS * TILE, width - width % TILE
    looped = whole - whole % part
    totals = [Cell(splat(VECTOR, 0.0)) for _ in range(TILE)]

    def add(at: Number, rest: Any = None) -> None:
        queries = [load(VECTOR, q + q_row * h + 4 * at) for h in range(heads)]
        fetched(ahead + 2 * keys * at, 2 * TILE * keys)
        for k in range(keys):
            x = halves(key + key_row * k + 2 * at, rest)
            for h in range(heads):
                totals[h * keys + k].value = fma(queries[h], x, totals[h * keys + k].value)

    for at in loop(0, looped, part):
        for i in range(0, part, TILE):
            add(at + i)
    for i in range(looped, whole, TILE):
        add(i)
    if whole < width:
        add(whole, width - whole)
    found = sums(*(total.value for total in totals))
    for h in range(heads):
        store(piece(found, h * keys, keys), out + out_row * h)


def passes(heads: int, width: int) -> list[tuple[int, int, int]]:
    """Share out the whole vectors of a value: passes of so many each, from one number to another."""
    count, most = width // TILE, min(8, REGISTERS // (heads + 1))
    turns = max(1, -(-count // most))
    fewer, more = divmod(count, turns)
    middle = more * (fewer + 1) * TILE
    shares = (0, middle, fewer + 1), (middle, count * TILE, fewer)
    return [(first, end, vectors) for first, end, vectors in shares if first < end]


def weighted(
    heads: int,
    vectors: int,
    weights: Number,
    weights_row: Number,
    value: Number,
    value_row: Number,
    count: Number,
    factors: list[Value],
    out: Number,
    out_row: Number,
    ahead: Number,
    lanes: Any = None,
) -> None:
    """Multiply `heads` sums of TILE * `vectors` lanes by a factor each, add w v for `count` values, and ask for memory.

    `lanes`: how many numbers of the last vector of a value may be read, where it is not all of them."""
    size = 2 * TILE * vectors
    places = [[out + out_row * h + 4 * TILE * c for c in range(vectors)] for h in range(heads)]
    totals = [[Cell(load(VECTOR, at) * factors[h]) for at in row] for h, row in enumerate(places)]
    for j in loop(0, count):
        fetched(ahead + size * j, size)
        x = [halves(value + value_row * j + 2 * TILE * c, lanes) for c in range(vectors)]
        for h in range(heads):
            weight = splat(VECTOR, load(f32, weights + weights_row * h + 4 * j))
            for c in range(vectors):
                totals[h][c].value = fma(weight, x[c], totals[h][c].value)
    for cells, row in zip(totals, places, strict=True):
        for total, at in zip(cells, row, strict=True):
            store(total.value, at)
