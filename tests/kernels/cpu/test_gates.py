"""Activations and gates against float64."""

from typing import get_args

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite")
from llava_ref.kernels import reference
from llava_ref.kernels.cpu.gates import gate
from llava_ref.kernels.cpu.launch import run
from llava_ref.ops.arrays import Activation

from ...support.helpers import close, rand

KINDS = get_args(Activation)
SIZES = [s * 10.0**e for e in range(-45, 39, 2) for s in (-1, 1)] + [0.0, -6.0, -20.0, -87.0, -88.7, -104.0, 89.0]


def numbers(n: int, seed: int = 0) -> Tensor:
    return 3 * torch.from_numpy(rand(n, seed=seed))


def gated(g: Tensor, u: Tensor | None, kind: str, out: Tensor | None = None, threads: int = 1) -> Tensor:
    out = torch.empty_like(g) if out is None else out
    run(gate(g.data_ptr(), 0 if u is None else u.data_ptr(), out.data_ptr(), len(g), kind), threads=threads)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 15, 1024, 5003])
def test_a_gate_agrees_with_float64(kind: str, n: int) -> None:
    g, u = numbers(n), numbers(n, 1)
    alone = getattr(reference, kind)(g.double())
    close(gated(g, None, kind).numpy(), alone.numpy(), 3e-7)
    close(gated(g, u, kind).numpy(), (alone * u).numpy(), 3e-7)
    close(gated(y := g.clone(), u, kind, y).numpy(), (alone * u).numpy(), 3e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_of_x_is_right(kind: str) -> None:
    """Each within 1e-6 of itself or of 1e-6: from subnormal numbers to the largest."""
    x = torch.tensor(SIZES)
    want = getattr(reference, kind)(x.double())
    torch.testing.assert_close(gated(x, None, kind).double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_and_infinity_are_those_of_torch(kind: str) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0] * 5)
    torch.testing.assert_close(gated(x, None, kind), getattr(reference, kind)(x), equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_values_depend_on_nothing_beside_them(kind: str) -> None:
    x = numbers(9001)
    many, one = gated(x, None, kind, threads=3), slice(4099, 4100)
    assert torch.equal(many, gated(x, None, kind))
    assert torch.equal(many[one], gated(x[one].clone(), None, kind))


def test_nothing_behind_the_end_is_touched() -> None:
    x, out = numbers(37), torch.full((40,), 7.0)
    gated(x, None, "silu", out)
    assert out[37:].tolist() == [7, 7, 7]
