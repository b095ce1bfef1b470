"""Normalised rows against float64."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite")
from llava_ref.kernels import reference
from llava_ref.kernels.cpu.launch import run
from llava_ref.kernels.cpu.norms import add, layer_norm, rms_norm

from ...support.helpers import close, rand

EPS = 1e-5
SHAPES = [(1, 576), (3, 37), (2, 16), (5, 1024), (7, 1), (2, 4100)]


def rows(T: int, D: int, seed: int = 0) -> Tensor:
    return 3 * torch.from_numpy(rand(T, D, seed=seed)) + 1


def normed(x: Tensor, gain: Tensor, out: Tensor, threads: int = 1) -> Tensor:
    run(rms_norm(x.data_ptr(), gain.data_ptr(), out.data_ptr(), *x.shape, EPS), threads=threads)
    return out


def centred(x: Tensor, gain: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    addresses = (x.data_ptr(), gain.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr())
    run(layer_norm(*addresses, *x.shape, EPS), threads=1)
    return out


@pytest.mark.parametrize(("T", "D"), SHAPES)
def test_rms_norm_agrees_with_float64(T: int, D: int) -> None:
    x, gain = rows(T, D), rows(1, D, 1)[0]
    want = reference.rms_norm(x.double(), gain.double(), EPS)
    close(normed(x, gain, torch.empty(T, D)).numpy(), want.numpy(), 2e-7)
    close(normed(y := x.clone(), gain, y).numpy(), want.numpy(), 2e-7)  # in place


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("T", "D"), [shape for shape in SHAPES if shape[1] > 1])
def test_layer_norm_agrees_with_float64(T: int, D: int, biased: bool) -> None:
    x, gain, bias = rows(T, D), rows(1, D, 1)[0], rows(1, D, 2)[0] if biased else None
    want = reference.layer_norm(x.double(), gain.double(), None if bias is None else bias.double(), EPS)
    close(centred(x, gain, bias, torch.empty(T, D)).numpy(), want.numpy(), 4e-7)
    close(centred(y := x.clone(), gain, bias, y).numpy(), want.numpy(), 4e-7)


def test_a_row_does_not_depend_on_others_or_on_threads() -> None:
    x, gain = rows(40, 577), rows(1, 577, 1)[0]
    together = normed(x, gain, torch.empty(40, 577))
    assert torch.equal(together, normed(x, gain, torch.empty(40, 577), threads=3))
    for t in 0, 17, 39:
        assert torch.equal(normed(x[t : t + 1].clone(), gain, torch.empty(1, 577))[0], together[t])


def test_small_rows_are_divided_by_the_root_of_eps() -> None:
    found = normed(torch.full((1, 20), 1e-9), torch.ones(20), torch.empty(1, 20))
    close(found.numpy(), (torch.full((1, 20), 1e-9).double() / EPS**0.5).numpy(), 2e-7)
    assert normed(torch.full((1, 20), torch.nan), torch.ones(20), torch.empty(1, 20)).isnan().all()


@pytest.mark.parametrize("n", [1, 15, 576, 4096, 4097, 20000])
def test_sums_are_those_of_torch(n: int) -> None:
    x, y, out = rows(1, n)[0], rows(1, n, 1)[0], torch.full((n + 1,), 7.0)
    run(add(x.data_ptr(), y.data_ptr(), out.data_ptr(), n), threads=2)
    assert torch.equal(out[:n], x + y) and out[n] == 7
    run(add(x.data_ptr(), y.data_ptr(), x.data_ptr(), n), threads=2)
    assert torch.equal(out[:n], x)
