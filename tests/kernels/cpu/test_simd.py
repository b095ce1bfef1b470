"""Operations on vectors give what numpy gives, in every instruction set that this processor has."""

import numpy as np
import pytest

pytest.importorskip("llvmlite")


from llava_ref.kernels.cpu import compiled, dots, lanes, processor
from llava_ref.kernels.cpu.compiled import assembly, kernel
from llava_ref.kernels.cpu.launch import Launch, arguments, run
from llava_ref.kernels.cpu.llvm import Kind
from llava_ref.kernels.cpu.simd import (
    f32x16,
    i8x16,
    i8x64,
    i16,
    i16x16,
    i16x32,
    i32x16,
    i64,
    load,
    load_some,
    splat,
    store,
    store_some,
)
from llava_ref.kernels.cpu.traced import Cell, least, loop, most, otherwise, pick, turns, when

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
SPREAD, BOTH = lanes.shuffle(*[3] * 8, *[1] * 8), lanes.shuffle_two(*range(0, 32, 2))
STEPS = lanes.vector(i32x16, *range(0, 160, 10))


@pytest.fixture(autouse=True, scope="module")
def fresh(tmp_path_factory):
    """Keep kernels of this file elsewhere: the folder's name says nothing of the sources of tests."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("kernels")
        patch.setattr(compiled, "folder", lambda: home)
        yield


def applied(made, out: np.ndarray, *given: np.ndarray, items: int = 1) -> np.ndarray:
    """Run a kernel whose arguments are the addresses of `given` and of `out`, and return `out`."""
    run(Launch(made, arguments(*(x.ctypes.data for x in (*given, out))), items, 1), threads=1)
    return out


def random(kind, n, seed=0):
    rng = np.random.default_rng(seed)
    if np.issubdtype(kind, np.integer):
        return rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, n, kind)
    return rng.standard_normal(n).astype(kind)


def places(args, count):
    return [load(i64, args + 8 * i) for i in range(count)]


@kernel
def integers(args, first, end):
    """Store what a few operators make of int16 lanes."""
    x, y, out = places(args, 3)
    a, b = load(i16x32, x), load(i16x32, y)
    found = [a + b, a - 3, a * b, a & b, a | 7, a ^ b, a << 3, a >> 3, lanes.shift_down(a, 3)]
    found += [lanes.larger(a, b), lanes.smaller(a, b), lanes.absolute(a), lanes.choose(lanes.less(a, b), a, b * 2)]
    found += [dots.upper_product(a, b), lanes.shift_up(a, b & 15), lanes.join(lanes.upper(a), lanes.lower(b))]
    for i, value in enumerate(found):
        store(value, out + 64 * i)


def test_operators_of_integers():
    a, b = random(np.int16, 32), random(np.int16, 32, 1)
    got = applied(integers, np.zeros((16, 32), np.int16), a, b)
    upper = (a.view(np.uint16).astype(np.uint32) * b.view(np.uint16) >> 16).astype(np.uint16).view(np.int16)
    logical = (a.view(np.uint16) >> 3).view(np.int16)
    want = [a + b, a - 3, a * b, a & b, a | 7, a ^ b, a << 3, a >> 3, logical, np.maximum(a, b), np.minimum(a, b)]
    want += [np.abs(a), np.where(a < b, a, b * 2), upper, a << (b & 15), np.concatenate([a[16:], b[:16]])]
    assert (got == np.array(want)).all(axis=1).all()


@kernel
def floats(args, first, end):
    """Store what a few operations make of float32 lanes."""
    x, y, out = places(args, 3)
    a, b = load(f32x16, x), load(f32x16, y)
    found = [a + b, a - b, a * 2.0, a / b, -a, lanes.square_root(lanes.absolute(a)), lanes.nearest(a * 100.0)]
    found += [lanes.larger(a, b), lanes.convert(f32x16, lanes.convert(i32x16, a * 100.0)), SPREAD(a), BOTH(a, b)]
    found += [lanes.convert(f32x16, STEPS()), lanes.choose(lanes.equal(a, b), a, splat(f32x16, lanes.lane(a, 2)))]
    for i, value in enumerate(found):
        store(value, out + 64 * i)


def test_operations_of_floats():
    a, b = random(np.float32, 16), random(np.float32, 16, 1)
    b[5] = a[5]
    got = applied(floats, np.zeros((13, 16), np.float32), a, b)
    hundred = a * np.float32(100)
    want = [a + b, a - b, a * 2, a / b, -a, np.sqrt(np.abs(a)), np.rint(hundred), np.maximum(a, b), np.trunc(hundred)]
    want += [np.repeat(a[[3, 1]], 8), np.concatenate([a, b])[::2], np.arange(0, 160, 10), np.where(a == b, a, a[2])]
    assert (got[9, :8] == a[3]).all()
    assert all((g == w).all() for g, w in zip(got, want, strict=True))


@kernel
def sums(args, first, end):
    """Store the sum of float32 lanes, and a b + c."""
    x, out = places(args, 2)
    a = load(f32x16, x)
    store(lanes.total(a), out)
    store(lanes.largest(a), out + 4)
    store(lanes.fma(a, a, a), out + 64)


def test_lanes_are_added_by_halves():
    a = random(np.float32, 16)
    got, half = applied(sums, np.zeros(32, np.float32), a), a
    while len(half) > 1:
        half = half[: len(half) // 2] + half[len(half) // 2 :]
    assert got[0] == half[0] and got[1] == a.max()
    exact = (a.astype(np.float64) * a + a).astype(np.float32)
    assert (got[16:] == exact).all() or (processor.INSTRUCTIONS == "portable" and np.allclose(got[16:], exact, 2e-7))


@kernel
def widened(args, first, end):
    """Convert 16 of all half-precision numbers at a time, and back."""
    x, floats, back, number = places(args, 4)
    for i in loop(first, end):
        value = lanes.from_half(load(i16x16, x + 32 * i))
        store(value, floats + 64 * i)
        store(lanes.to_half(value), back + 32 * i)
        store(lanes.half_number(load(i16, x + 32 * i)), number + 4 * i)


def test_half_precision_is_exact():
    floats, back, numbers = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.float16), np.zeros(1 << 12, np.float32)
    applied(widened, numbers, HALVES, floats, back, items=1 << 12)
    want = HALVES.astype(np.float32)
    assert np.array_equal(floats, want, equal_nan=True) and np.array_equal(numbers, want[::16], equal_nan=True)
    assert (np.signbit(floats) == np.signbit(want))[~np.isnan(want)].all()
    assert np.array_equal(back, HALVES, equal_nan=True) and (np.signbit(back) == np.signbit(HALVES)).all()


@kernel
def rounded(args, first, end):
    """Round 16 float32 at a time to half precision and to bfloat16, and widen those."""
    x, halves, brains, wide = places(args, 4)
    for i in loop(first, end):
        value = load(f32x16, x + 64 * i)
        store(lanes.to_half(value), halves + 32 * i)
        store(lanes.to_bfloat16(value), brains + 32 * i)
        store(lanes.from_bfloat16(load(i16x16, brains + 32 * i)), wide + 64 * i)


def test_floats_are_rounded_to_the_nearest_and_ties_to_even():
    torch = pytest.importorskip("torch")
    near = HALVES[np.isfinite(HALVES)].astype(np.float32)
    ties = (near[1:] + near[:-1]) / 2
    special = np.array([np.inf, -np.inf, np.nan, 65519.99, 65520, 1e9, 1e-9, -0.0, 2.0**-25, 3e-8, 3.4e38], np.float32)
    x = np.concatenate([ties, np.nextafter(ties, np.float32(0)), random(np.float32, 4096) * 1e-6, special])
    x = x[: len(x) // 16 * 16] if len(x) % 16 == 0 else np.concatenate([x, np.zeros(-len(x) % 16, np.float32)])
    halves, brains, wide = np.zeros(len(x), np.float16), np.zeros(len(x), np.int16), np.zeros(len(x), np.float32)
    applied(rounded, wide, x, halves, brains, items=len(x) // 16)
    with np.errstate(over="ignore"):
        assert np.array_equal(halves, x.astype(np.float16), equal_nan=True)
    want = torch.from_numpy(x).bfloat16()
    assert torch.equal(torch.from_numpy(brains).view(torch.bfloat16)[~want.isnan()], want[~want.isnan()])
    assert np.array_equal(wide, want.float().numpy(), equal_nan=True)


@kernel
def products(args, first, end):
    """Store sums of neighbours' products, of words and of bytes, and bytes looked up."""
    x, y, out = places(args, 3)
    a, b = load(i16x32, x), load(i16x32, y)
    codes, numbers = lanes.bits(i8x64, a) & 127, lanes.bits(i8x64, b)
    store(dots.dot16(splat(i32x16, 5), a, b), out)
    store(dots.pairs16(lanes.lower(a), lanes.lower(b)), out + 64)
    store(dots.pairs8(codes, numbers), out + 128)
    store(dots.dot8(splat(i32x16, -5), codes, numbers), out + 192)
    store(dots.look_up(load(i8x16, y), codes & 15), out + 256)
    store(dots.look_up_near(numbers, codes & 15), out + 320)
    store(dots.pairs8(codes, lanes.bits(i8x64, b & 255)), out + 384)


def test_dot_products_and_tables():
    a, b = random(np.int16, 32), random(np.int16, 32, 1)
    a[:2], b[:2] = -32768, -32767
    codes, numbers = a.view(np.uint8) & 127, b.view(np.int8).astype(np.int64)
    got = applied(products, np.zeros((7, 64), np.int8), a, b)
    pairs, four = a.astype(np.int64) * b, (codes * numbers)
    assert (got[0].view(np.int32) == pairs.reshape(-1, 2).sum(1) + 5).all()
    assert (got[1, :32].view(np.int32) == pairs[:16].reshape(-1, 2).sum(1)).all()
    assert (got[2].view(np.int16) == four.reshape(-1, 2).sum(1)).all()
    assert (got[3].view(np.int32) == four.reshape(-1, 4).sum(1) - 5).all()
    table = b.view(np.int8)
    assert (got[4] == table[:16][codes & 15]).all()
    assert (got[5] == table.reshape(4, 16)[np.arange(64) // 16, codes & 15]).all()
    assert (got[6].view(np.int16) == four[::2]).all()


@kernel
def some(args, first, end):
    """Copy the first 5 of 16 numbers."""
    x, out = places(args, 2)
    store_some(load_some(f32x16, 5, x) + 1.0, 7, out)


def test_only_some_lanes_are_read_and_written():
    x, out = random(np.float32, 16), np.full(16, 9, np.float32)
    applied(some, out, x)
    assert (out == np.concatenate([x[:5] + 1, [1, 1], np.full(9, 9)])).all()


@kernel
def turning(args, first, end):
    """Store the steps of Collatz from each number to 1, and whether it is odd."""
    x, out = places(args, 2)
    for i in loop(first, end, 1):
        n, steps = Cell(load(i64, x + 8 * i)), Cell(0)
        for turn in turns():
            with when(n.value == 1):
                turn.leave()
            n.value = pick(n.value % 2 == 0, n.value // 2, 3 * n.value + 1)
            steps.value = steps.value + 1
        with when(least(most(steps.value, 3), 100) == 3):
            store(-steps.value, out + 8 * i)
        with otherwise(steps.value <= 3):
            store(steps.value, out + 8 * i)


def test_loops_and_conditions_of_a_traced_kernel():
    def steps(n, count=0):
        return count if n == 1 else steps(3 * n + 1 if n % 2 else n // 2, count + 1)

    got = applied(turning, np.zeros(20, np.int64), np.arange(1, 21), items=20)
    assert got.tolist() == [count if (count := steps(n)) > 3 else -count for n in range(1, 21)]


def test_a_condition_on_a_number_of_the_machine_is_refused():
    def wrong(args, first, end):
        """Decide while the kernel is made what only the kernel knows."""
        if first > end:
            store(first, args)

    with pytest.raises(TypeError, match="when"):
        assembly("wrong", wrong)


@kernel
def offsets(args, first, end):
    """Load vectors at base + 64 j, and at 0 plus their address: a number of the machine, and one of Python."""
    x, zero, out = places(args, 3)
    found = [load(f32x16, x + 64 * j) for j in (0, 5)]
    found += [load(f32x16, zero + x), load(f32x16, 0 + x)]
    for i, value in enumerate(found):
        store(value, out + 64 * i)


def test_an_address_of_0_plus_an_offset():
    x, out = random(np.float32, 96), np.zeros((4, 16), np.float32)
    run(Launch(offsets, arguments(x.ctypes.data, 0, out.ctypes.data), 1, 1), threads=1)
    assert (out == np.array([x[:16], x[80:], x[:16], x[:16]])).all()


def test_names_of_types():
    assert str(Kind("i8", 64)) == "i8x64" and Kind("i8", 64) == i8x64
