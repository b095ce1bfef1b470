"""Products with matrices of 16 and 32 bits, and what follows them, against float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from llava_ref.kernels import reference
from llava_ref.kernels.triton.activations import Activations, quantise
from llava_ref.kernels.triton.dense import gated, matvec

from ..support.helpers import close, rand
from ..support.triton_device import DEVICE

TYPES = (torch.float16, torch.bfloat16, torch.float32)


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rand(*shape, seed=seed)).to(DEVICE)


def matrix(N: int, K: int, dtype: torch.dtype, seed: int = 9) -> Tensor:
    """Return a matrix with NaN behind its last row, so that a weight read from there shows."""
    memory = torch.full((N * K + 2048,), float("nan"), device=DEVICE).to(dtype)
    memory[: N * K] = tensor(N * K, seed=seed).to(dtype)
    return memory[: N * K].view(N, K)


def guarded(M: int, N: int) -> tuple[Tensor, Tensor]:
    """Return (M, N) of NaN, and all of its memory, with 7 on both sides."""
    memory = torch.full((M * N + 128,), 7.0, device=DEVICE)
    memory[64:-64] = float("nan")
    return memory[64:-64].view(M, N), memory


def wide(*tensors: Tensor) -> list[Tensor]:
    return [t.cpu().double() for t in tensors]


def terms(a: Activations) -> Tensor:
    q1, q2 = a.first.cpu().view(torch.int8).double(), a.second.cpu().view(torch.int8).double()
    return a.scale.cpu().double().repeat_interleave(32, 1) * (q1 + q2 / 254)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("M", "N", "K"), [(1, 1, 32), (1, 5, 1024), (2, 37, 96), (3, 3, 33), (4, 4, 1056), (8, 5, 2200), (1, 6, 3072)]
)
def test_a_product_agrees_with_float64(M: int, N: int, K: int, dtype: torch.dtype) -> None:
    x, w, bias, add = tensor(M, K), matrix(N, K, dtype), tensor(N, seed=1), tensor(M, N, seed=2)
    (y, memory), a = guarded(M, N), quantise(x)
    want = wide(x)[0] @ wide(w)[0].T
    assert matvec(a, w, y) is y
    close(y.cpu().numpy(), want.numpy(), 1e-6, "alone")
    assert (memory[:64] == 7).all() and (memory[-64:] == 7).all()
    close(matvec(a, w, bias=bias).cpu().numpy(), (want + wide(bias)[0]).numpy(), 1e-6, "bias")
    both = want + wide(bias)[0] + wide(add)[0]
    close(matvec(a, w, add, bias=bias, add=add).cpu().numpy(), both.numpy(), 1e-6, "bias and add in place")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("M", "F", "K"), [(1, 32, 64), (1, 37, 1056), (3, 5, 33), (8, 64, 160)])
def test_a_gated_product_agrees_with_float64(M: int, F: int, K: int, dtype: torch.dtype) -> None:
    x, w = tensor(M, K), matrix(2 * F, K, dtype) / K**0.5
    out = gated(quantise(x), w, "silu")
    gate, up = (wide(x)[0] @ wide(w)[0].T).chunk(2, 1)
    want = (reference.silu(gate) * up).numpy()
    close(out.x.cpu()[:, :F].numpy(), want, 1e-6)
    close(terms(out)[:, :F].numpy(), want, 1e-4)
    again = quantise(out.x[:, :F].contiguous())
    for name in ("first", "second", "scale", "sums"):
        assert torch.equal(getattr(out, name), getattr(again, name)), name
    assert not out.x[:, F:].any()


def test_rows_of_an_earlier_product_are_overwritten() -> None:
    x, w = tensor(2, 64), matrix(2 * 40, 64, torch.float16)
    out = Activations.empty(2, 40, DEVICE)
    for t in (out.x, out.scale, out.sums):
        t[:, : t.shape[1] // 16] = float("nan")  # the two groups that 40 outputs touch
    want = gated(quantise(x), w, "gelu_tanh")
    assert gated(quantise(x), w, "gelu_tanh", out) is out
    for name in ("x", "first", "second", "scale", "sums"):
        assert torch.equal(getattr(out, name), getattr(want, name)), name


def test_the_largest_and_the_smallest_weights_of_float16() -> None:
    w = torch.from_numpy(np.resize([6e4, -6e4, 6e-8, -3e-5, 1.0], (3, 160)).astype(np.float16)).to(DEVICE)
    x = tensor(2, 160)
    close(matvec(quantise(x), w).cpu().numpy(), (wide(x)[0] @ wide(w)[0].T).numpy(), 1e-6)
    small = torch.full((1, 64), 6e-8, dtype=torch.float16, device=DEVICE)
    got = matvec(quantise(torch.ones(1, 64, device=DEVICE)), small)
    assert got.item() == pytest.approx(64 * small[0, 0].item(), rel=1e-6) and got.item() > 0


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter
def test_what_is_not_finite_shows() -> None:
    x, w = tensor(2, 64), matrix(2 * 32, 64, torch.float16)
    x[1, 5] = float("inf")
    a = quantise(x)
    assert matvec(a, w).isfinite().all(1).tolist() == [True, False]
    assert gated(a, w, "silu").scale[:, 0].isnan().tolist() == [False, True]


def test_a_launch_refuses_what_it_would_read_wrongly() -> None:
    x, w = quantise(tensor(2, 64)), tensor(6, 64)
    for bad in (w.double(), w[:, ::2], w[0]):
        with pytest.raises(ValueError, match="^w: "):
            matvec(x, bad)
    with pytest.raises(ValueError, match="^x: "):
        matvec(x, tensor(2, 1025))
    with pytest.raises(ValueError, match="^x: "):
        matvec(quantise(tensor(9, 64)), w)
    with pytest.raises(ValueError, match="^bias: "):
        matvec(x, w, bias=tensor(5))
    with pytest.raises(ValueError, match="^add: "):
        matvec(x, w, add=tensor(1, 6))
    with pytest.raises(ValueError, match="^out: "):
        matvec(x, w, tensor(6, 2).T)
    with pytest.raises(ValueError, match="^w: "):
        gated(x, w[:5], "silu")
    with pytest.raises(ValueError, match="^kind: "):
        gated(x, w, "relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^out: "):
        gated(x, w, "silu", Activations.empty(2, 1025, DEVICE))
