"""Activations and gates against float64."""

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from llava_ref.kernels import reference
from llava_ref.kernels.triton.gates import KINDS, gate

from ..support.helpers import close, rand
from ..support.triton_device import DEVICE


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rand(*shape, seed=seed)).to(DEVICE)


def wanted(g: Tensor, u: Tensor, kind: str) -> Tensor:
    return getattr(reference, kind)(g.cpu().double()) * u.cpu().double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "F"), [(1, 1), (3, 37), (2, 1024), (2, 1100), (17, 48)])
def test_a_gate_agrees_with_float64(kind: str, M: int, F: int) -> None:
    g, u = 3 * tensor(M, F), tensor(M, F, seed=1)
    error = gate(g, u, kind).cpu().double() - wanted(g, u, kind)
    assert error.norm() <= 1e-7 * (g * u).norm()  # of what could pass the gate: 1 + erf cancels where little passes


@pytest.mark.parametrize("kind", KINDS)
def test_halves_of_one_product_are_read_where_they_lie(kind: str) -> None:
    both, alone = tensor(5, 2 * 99), tensor(5, 99)
    for g, u in ((both[:, :99], both[:, 99:]), (both[:, 99:], alone), (alone, both[:, 99:])):
        close(gate(g, u, kind).cpu().numpy(), wanted(g, u, kind).numpy(), 3e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_of_x_is_exact_or_nothing(kind: str) -> None:
    """Each value within 1e-6 of itself or 1e-6 absolutely, to 1e12, where x^3 still is a number."""
    sizes = torch.tensor(
        [s * 10.0**e for e in range(-40, 13) for s in (-1, 1)] + [0.0, -6.0, 6.0, -20.0, -88.0, -200.0]
    )
    g = sizes[None].to(DEVICE)
    want = wanted(g, torch.ones_like(g), kind)
    torch.testing.assert_close(gate(g, torch.ones_like(g), kind).cpu().double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_show(kind: str) -> None:
    bad = torch.tensor([[math.nan, math.inf, -math.inf, 1.0]], device=DEVICE)
    ones = torch.ones_like(bad)
    got = gate(bad, ones, kind).cpu()[0]
    assert got[0].isnan() and got[1] == math.inf and got[2].isnan() and got[3].isfinite()
    assert gate(ones, bad, kind).isfinite().tolist() == [[False, False, False, True]]


def test_half_precision_is_rounded_once() -> None:
    g, u = tensor(2, 70).half(), tensor(2, 70, seed=1).half()
    got = gate(g, u, "silu", dtype=torch.float16)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.cpu().double(), wanted(g, u, "silu"), rtol=5e-4, atol=6e-8)


def test_a_launch_refuses_what_it_would_read_wrongly() -> None:
    with pytest.raises(ValueError, match="^up: "):
        gate(tensor(2, 8), tensor(2, 9), "silu")
    with pytest.raises(ValueError, match="^gate: "):
        gate(tensor(2, 8)[:, ::2], tensor(2, 4), "silu")
    with pytest.raises(ValueError, match="^kind: "):
        gate(tensor(2, 8), tensor(2, 8), "relu")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_an_activation_alone_is_a_gate_of_ones(kind: str) -> None:
    for x in (tensor(3, 8), tensor(2, 1030)):
        assert torch.equal(gate(x, None, kind), gate(x, torch.ones_like(x), kind))
