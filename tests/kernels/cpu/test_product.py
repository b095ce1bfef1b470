"""Products of many rows, in every way that this machine has, against float64 of the weights and the true x."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("llvmlite")

from llava_ref.kernels.cpu import panels, processor, product
from llava_ref.kernels.cpu.matvec import DENSE, SUPPORTED
from llava_ref.kernels.cpu.product import ManyRows, Way

from .blocks import AtTheEnd, extreme, usual, weights

BOUND = {"amx": 3e-3, "bfloat16": 4e-3, "float32": 1e-6}  # largest seen: 2.5e-3, 3.0e-3, 4e-7
SHAPES = [(33, 768, 9), (300, 256, 77), (1, 1024, 16), (130, 1280, 33)]  # N, K, T
OWN = ("amx", "integers")
"""Ways of this package: torch has the others."""
GUARD, SPECIAL = 64, 7
ODD = Path(__file__)


def ways(kind: str) -> list[Way]:
    """Return the ways in which a type can be multiplied here, whatever is chosen."""
    return [*["amx"] * processor.TILES, "integers", "bfloat16", "float32"]


CASES = [(kind, way) for kind in sorted(SUPPORTED) for way in ways(kind)]


def bound(kind: str, way: Way) -> float:
    """Return the largest relative error. Seen in integers: 5.9e-3 in 8 bits, 1.8e-4 of numbers, 4.5e-5 in 16 bits."""
    if way == "integers":
        return 7e-3 if panels.CODES[kind].form.octets else 2.5e-4 if kind in DENSE else 6e-5
    return BOUND[way]


def rows_of_x(T: int, K: int) -> torch.Tensor:
    return torch.randn((T, K), generator=torch.Generator().manual_seed(T + K))


def multiplied(monkeypatch, kind: str, way: Way, b: torch.Tensor, x: torch.Tensor, threads: int = 2) -> torch.Tensor:
    monkeypatch.setattr(product, "way", lambda _: way)
    many, at = ManyRows(threads), AtTheEnd(b)
    return many.product(kind, at.address, len(b), x.shape[1], many.input(x))


def error(y: torch.Tensor, want: torch.Tensor) -> float:
    assert y.shape == want.shape and y.dtype == torch.float32
    return float((y - want).norm() / want.norm())


@pytest.mark.parametrize("kind, way", CASES)
def test_a_product_is_right(kind, way, monkeypatch):
    for N, K, T in SHAPES:
        b, x = usual(kind, N, K), rows_of_x(T, K)
        y = multiplied(monkeypatch, kind, way, b, x)
        assert error(y, x.double() @ weights(kind, b).T) < bound(kind, way) * (1 if N > 1 else 2), (N, K, T)


@pytest.mark.parametrize("kind, way", [case for case in CASES if case[0] in DENSE])
def test_rows_of_numbers_end_anywhere(kind, way, monkeypatch):
    for N, K, T in [(40, 588, 45), (3, 5, 9), (31, 33, 32)]:
        b, x = usual(kind, N, K), rows_of_x(T, K)
        y = multiplied(monkeypatch, kind, way, b, x)
        assert error(y, x.double() @ weights(kind, b).T) < 2 * bound(kind, way), (N, K, T)


@pytest.mark.parametrize("kind, way", [case for case in CASES if case[1] in OWN])
def test_threads_and_other_rows_change_no_bit(kind, way, monkeypatch):
    b, x = usual(kind, 300, 768), rows_of_x(50, 768)
    y = multiplied(monkeypatch, kind, way, b, x, 1)
    assert all(torch.equal(y, multiplied(monkeypatch, kind, way, b, x, n)) for n in (2, 3))
    other = torch.cat((x[30:], 1e4 * x[:9]))
    assert torch.equal(y[30:], multiplied(monkeypatch, kind, way, b, other)[:20])


@pytest.mark.parametrize(
    "kind, way", [("Q4_K", "integers"), ("F16", "integers"), *[("Q4_K", "amx"), ("F16", "amx")] * processor.TILES]
)
def test_long_rows_and_many_of_them(kind, way, monkeypatch):
    """More columns, tiles and blocks than are multiplied at a time."""
    for N, K, T in [(260, 4352, 300), (2100, 256, 110), (20, 8192, 700)]:
        b, x = usual(kind, N, K), rows_of_x(T, K)
        assert error(multiplied(monkeypatch, kind, way, b, x), x.double() @ weights(kind, b).T) < bound(kind, way)


@pytest.mark.parametrize("kind, way", [case for case in CASES if case[0] not in DENSE])
def test_scales_may_be_anything(kind, way, monkeypatch):
    """Where a weight is infinite or NaN the sum is no number either; everywhere else it is right."""
    b, x = extreme(kind, 512), rows_of_x(20, 512).abs()
    y, w = multiplied(monkeypatch, kind, way, b, x).double(), weights(kind, b)
    sound = w.isfinite().all(1)
    assert not y[:, ~sound].isfinite().any() and sound.any()
    want = x.double() @ w[sound].T
    size = (x.double() @ w[sound].abs().T).clamp(min=1e-30)
    near = ((y[:, sound] - want).abs() / size).nan_to_num(1.0) < 2e-2
    small = w[sound].abs().amax(1) < 2.0**-100  # AMX takes them for zeros
    assert (near | small | (want.abs() > 3e38)).all()


@pytest.mark.parametrize("way", [way for way in ways("Q8_0")])
def test_x_may_be_anything(way, monkeypatch):
    b, x = usual("Q8_0", 40, 256), rows_of_x(12, 256)
    x[0], x[1] = 0.0, -0.0
    x[2, 17], x[3, 5], x[4, 250] = torch.inf, torch.nan, -torch.inf
    x[5], x[6], x[7, 100] = x[5] * 1e-20, x[6] * 1e30, 1e6
    y = multiplied(monkeypatch, "Q8_0", way, b, x)
    want = x.double() @ weights("Q8_0", b).T
    assert not y[2:5].isfinite().any() and (y[:2] == 0).all()
    for row in (5, 6, 7, *range(8, 12)):
        assert error(y[row], want[row]) < 2 * bound("Q8_0", way), row


@pytest.mark.parametrize("kind, way", [case for case in CASES if case[0] in ("Q6_K", "F16") and case[1] != "float32"])
def test_nothing_outside_is_written(kind, way, monkeypatch):
    made, empty = [], torch.empty

    def guarded(*shape, dtype=torch.float32):
        (shape,) = (shape,) if isinstance(shape[0], int) else shape
        size = torch.Size((shape,) if isinstance(shape, int) else shape).numel()
        memory = empty(size + 2 * GUARD, dtype=dtype).fill_(SPECIAL)
        made.append(memory)
        return memory[GUARD : GUARD + size].view(shape)

    b, x = usual(kind, 45, 256), rows_of_x(21, 256)
    monkeypatch.setattr(torch, "empty", guarded)
    y = multiplied(monkeypatch, kind, way, b, x)
    monkeypatch.undo()
    assert made and all((m[:GUARD] == SPECIAL).all() and (m[-GUARD:] == SPECIAL).all() for m in made)
    assert error(y, x.double() @ weights(kind, b).T) < bound(kind, way)


def test_the_same_rows_serve_several_matrices(monkeypatch):
    x, many = rows_of_x(10, 256), ManyRows(2)
    rows = many.input(x)
    for kind in ("Q4_K", "Q6_K", "Q8_0", "Q2_K", "F16", "Q4_0", "Q4_K"):
        b = usual(kind, 20, 256)
        y = many.product(kind, b.data_ptr(), 20, 256, rows)
        assert error(y, x.double() @ weights(kind, b).T) < 1e-2


TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def numbers(kind: str, w: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a matrix of numbers, rounded to a type."""
    return w.to(TYPES[kind]).contiguous().view(torch.uint8)


@pytest.mark.parametrize(
    "kind, way", [case for case in CASES if case[0] in DENSE and case[1] in ("integers", "float32")]
)
def test_groups_of_numbers_have_scales_of_their_own(kind, way, monkeypatch):
    """Large weights beside tiny ones, subnormal halves, zeros: each group is as exact as its size allows."""
    sizes = [6e4, 1e-30, 1.0, 3e-7, 0.0, -1e-3, 2e-41, 1e-20, 6e-8]
    w = rows_of_x(40, 32 * len(sizes)).clamp(-1, 1).view(40, -1, 32) * torch.tensor(sizes)[:, None]
    x = rows_of_x(19, w[0].numel()).view(19, -1, 32)
    b = numbers(kind, w.flatten(1))
    for group in range(len(sizes)):
        alone = torch.zeros_like(x)
        alone[:, group] = x[:, group]
        y = multiplied(monkeypatch, kind, way, b, alone.flatten(1))
        want = alone.flatten(1).double() @ weights(kind, b).T
        assert want.norm() < 1e-32 or error(y, want) < 2 * bound(kind, way), sizes[group]


@pytest.mark.parametrize("kind", sorted(DENSE))
def test_the_largest_numbers_fit(kind, monkeypatch):
    """Products of equal numbers are the largest that codes can have; those of one row have both signs."""
    w, x = torch.full((20, 640), 1.5), torch.full((7, 640), -0.75)
    w[3] = -1.5
    y = multiplied(monkeypatch, kind, "integers", numbers(kind, w), x).double()
    assert error(y.float(), x.double() @ w.double().T) < 1e-6


@pytest.mark.parametrize("kind", sorted(DENSE))
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_number_that_is_none_spoils_its_own_row_only(kind, value, monkeypatch):
    w, x = rows_of_x(37, 300), rows_of_x(11, 300)
    w[5, 0], w[17, 299], w[36, 150] = value, value, value
    y = multiplied(monkeypatch, kind, "integers", numbers(kind, w), x)
    spoilt = torch.zeros(37, dtype=torch.bool)
    spoilt[[5, 17, 36]] = True
    assert not y[:, spoilt].isfinite().any()
    w[spoilt] = 0
    assert error(y[:, ~spoilt], (x.double() @ weights(kind, numbers(kind, w)).T)[:, ~spoilt]) < bound(kind, "integers")


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K", "Q6_K"])
def test_any_number_of_rows(kind, monkeypatch):
    b, w = usual(kind, 50, 768), weights(kind, usual(kind, 50, 768))
    for T in (*range(1, 15), 63, 64, 65, 600):
        x = rows_of_x(T, 768)
        assert error(multiplied(monkeypatch, kind, "integers", b, x), x.double() @ w.T) < 1.2 * bound(
            kind, "integers"
        ), T


def test_the_way_is_said_in_words():
    bits = 8 if panels.CODES["Q4_K"].form.octets else 16
    assert product.chosen("Q4_K") == ("bf16 (AMX)" if processor.TILES else f"int{bits} ({processor.SET})")
    expected = {"amx": "bf16 (AMX)", "avx2": "int16 (avx2)", "portable": "f32"}
    assert product.chosen("F16") in (expected.get(processor.LEVEL), "int16 (avx512)", "bf16 (AVX512-BF16)")


@pytest.mark.skipif("LLAVA_REF_SIMD" in os.environ, reason="one level is chosen for this process")
@pytest.mark.parametrize("name", [name for name in processor.LEVELS if name not in ("amx", processor.LEVEL)])
def test_many_rows_at_every_other_level(name):
    """Run some tests again: a level is chosen once a process."""
    kinds = " or ".join(f"{kind}-integers" for kind in ("Q4_K", "Q6_K", "Q8_0", "Q4_0", "Q5_1", "F16"))
    chosen = f"({kinds}) and (right or bit or anything or outside or anywhere)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, str(ODD)]
    done = subprocess.run(command, env=os.environ | {"LLAVA_REF_SIMD": name}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
