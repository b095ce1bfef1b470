"""Quantising rows to two terms, and the norms in front of it, against float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from llava_ref.kernels import reference
from llava_ref.kernels.triton.activations import Activations, quantise, rms_norm, rms_norm_quantise

from ..support.helpers import close, rand
from ..support.triton_device import DEVICE


def tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x).to(DEVICE)


def read(a: Activations) -> tuple[Tensor, Tensor, Tensor]:
    """Return q1, q2 and d (q1 + q2 / 254), (M, Kp) in float64."""
    q1, q2 = a.first.cpu().view(torch.int8).double(), a.second.cpu().view(torch.int8).double()
    return q1, q2, a.scale.cpu().double().repeat_interleave(32, 1) * (q1 + q2 / 254)


def soiled(M: int, K: int) -> Activations:
    """Activations full of NaN and bytes of 0x55, so that whatever a kernel leaves out shows."""
    a = Activations.empty(M, K, DEVICE)
    for t in (a.x, a.scale, a.sums):
        t.fill_(float("nan"))
    for t in (a.first, a.second):
        t.fill_(0x55555555)
    return a


@pytest.mark.parametrize(("M", "K"), [(1, 1), (1, 31), (2, 33), (3, 160), (1, 1024), (8, 1056), (1, 2048)])
def test_two_terms_differ_from_x_by_at_most_their_last_place(M: int, K: int) -> None:
    x = tensor(rand(M, K) * np.exp(4 * rand(M, K, seed=1)))
    a = quantise(x, soiled(M, K))
    q1, q2, y = read(a)
    padded = torch.nn.functional.pad(x.cpu().double(), (0, a.x.shape[1] - K))
    groups = padded.reshape(M, -1, 32)
    d = groups.abs().amax(2) / 127
    torch.testing.assert_close(a.x.cpu().double(), padded, rtol=0, atol=0)
    torch.testing.assert_close(a.scale.cpu().double(), d, rtol=2e-7, atol=0)
    assert ((padded - y).abs() <= d.repeat_interleave(32, 1) * (1.01 / 508)).all()
    assert max(q1.abs().max(), q2.abs().max()) == 127
    halves = y.reshape(M, -1, 16)
    assert ((a.sums.cpu() - halves.sum(2)).abs() <= 2e-7 * halves.abs().sum(2)).all()


def test_ties_go_to_the_even_integer() -> None:
    x = torch.zeros(1, 32, device=DEVICE)
    x[0, :6] = torch.tensor([127, 0.5, 1.5, 2.5, -0.5, -1.5])
    q1, q2, _ = read(quantise(x, soiled(1, 32)))
    assert q1[0, :6].tolist() == [127, 0, 2, 2, 0, -2]
    assert q2[0, :6].tolist() == [0, 127, -127, 127, -127, 127]


@pytest.mark.parametrize("size", [1e37, 1.0, 1e-25, 1e-30])
def test_any_size_is_quantised_alike(size: float) -> None:
    x = tensor(rand(1, 64).clip(-1, 1))
    ours, scaled = quantise(x, soiled(1, 64)), quantise(x * size, soiled(1, 64))
    close((read(scaled)[2] / size).numpy(), read(ours)[2].numpy(), 1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-31, 1e-40])
def test_a_group_of_nothing_is_zero(size: float) -> None:
    a = quantise(torch.full((1, 64), size, device=DEVICE), soiled(1, 64))
    for t in (a.first, a.second, a.scale, a.sums):
        assert not t.any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 17, 31])
def test_what_is_not_finite_spoils_its_group_alone(bad: float, at: int) -> None:
    x = tensor(rand(2, 96))
    x[1, 32 + at] = bad
    a = quantise(x, soiled(2, 96))
    assert a.scale.isnan().nonzero().tolist() == [[1, 1]]
    assert a.sums.isnan().nonzero().tolist() == [[1, 2], [1, 3]]


def test_a_negative_nan_is_no_number_either() -> None:
    x = torch.ones(1, 32, device=DEVICE)
    x.view(torch.int32)[0, 3] = -1
    assert quantise(x).scale[0, 0].isnan()


@pytest.mark.parametrize(("M", "D"), [(1, 32), (2, 100), (1, 1024), (3, 1056), (1, 4096)])
def test_rms_norm_is_quantised(M: int, D: int) -> None:
    x, gain = tensor(rand(M, D) * 3), tensor(rand(D, seed=1))
    before = x.clone()
    a = rms_norm_quantise(x, gain, 1e-5, soiled(M, D))
    want = reference.rms_norm(x.cpu().double(), gain.cpu().double(), 1e-5).numpy()
    close(a.x.cpu()[:, :D].numpy(), want, 3e-7)
    close(read(a)[2][:, :D].numpy(), want, 1e-4)
    assert not a.x[:, D:].any() and not read(a)[2][:, D:].any()
    assert torch.equal(x, before)


@pytest.mark.parametrize(("M", "D"), [(1, 1024), (2, 2560), (3, 160)])
def test_the_norm_behind_a_branch_changes_x(M: int, D: int) -> None:
    x, gain, add, add_gain = (tensor(t) for t in (rand(M, D), rand(D, seed=1), rand(M, D, seed=2), rand(D, seed=3)))
    wide = [t.cpu().double() for t in (x, gain, add, add_gain)]
    a = rms_norm_quantise(x, gain, 1e-6, soiled(M, D), add=add, add_gain=add_gain)
    residual = wide[0] + reference.rms_norm(wide[2], wide[3], 1e-6)
    close(x.cpu().numpy(), residual.numpy(), 3e-7)
    close(a.x.cpu()[:, :D].numpy(), reference.rms_norm(residual, wide[1], 1e-6).numpy(), 3e-7)


def test_rms_norm_of_zeros_is_zero_and_of_nan_shows() -> None:
    x = torch.zeros(2, 64, device=DEVICE)
    x[1, 5] = float("nan")
    a = rms_norm_quantise(x, torch.ones(64, device=DEVICE), 1e-5, soiled(2, 64))
    assert not a.scale[0].any() and a.scale[1, :2].isnan().all()


def rows_alone(x: Tensor) -> Tensor:
    return x


def a_slice_of_columns(x: Tensor) -> Tensor:
    wide = torch.full((x.shape[0], 3 * x.shape[1]), float("nan"), device=x.device)
    wide[:, x.shape[1] : 2 * x.shape[1]] = x
    return wide[:, x.shape[1] : 2 * x.shape[1]]


def heads_of_a_product(x: Tensor) -> Tensor:
    """(T, D) -> (T, 3, D), heads 2..4 of six."""
    wide = torch.full((x.shape[0], 6, x.shape[1]), float("nan"), device=x.device)
    wide[:, 2:5] = x[:, None] * torch.arange(1, 4, device=x.device)[None, :, None]
    return wide[:, 2:5]


@pytest.mark.parametrize("lay", [rows_alone, a_slice_of_columns, heads_of_a_product])
@pytest.mark.parametrize(("R", "D"), [(1, 1), (37, 72), (5, 128), (2, 4100)])
def test_rms_norm_of_rows_that_lie_apart(lay: Callable[[Tensor], Tensor], R: int, D: int) -> None:
    x, gain = lay(tensor(rand(R, D))), tensor(rand(D, seed=1))
    want = reference.rms_norm(x.cpu().double(), gain.cpu().double(), 1e-5).numpy()
    close(rms_norm(x, gain, 1e-5).cpu().numpy(), want, 3e-7)


def test_a_launch_refuses_what_it_would_read_wrongly() -> None:
    x, gain = torch.ones(2, 64, device=DEVICE), torch.ones(64, device=DEVICE)
    with pytest.raises(ValueError, match="^x: "):
        quantise(x.half())
    with pytest.raises(ValueError, match="^x: "):
        quantise(x[:, ::2])
    with pytest.raises(ValueError, match="^out: "):
        quantise(x, Activations.empty(2, 1025, DEVICE))
    with pytest.raises(ValueError, match="^gain: "):
        rms_norm_quantise(x, gain[:32], 1e-5)
    with pytest.raises(ValueError, match="^add_gain: "):
        rms_norm_quantise(x, gain, 1e-5, add=x)
    with pytest.raises(ValueError, match="^add: "):
        rms_norm_quantise(x, gain, 1e-5, add=x[:1], add_gain=gain)
    with pytest.raises(ValueError, match="^x: "):
        rms_norm(x.T, gain[:2], 1e-5)
