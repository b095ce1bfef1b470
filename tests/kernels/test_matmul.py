"""The fused product with planes, against float64 of the dequantised weights and the true x."""

import pytest
import torch

pytest.importorskip("triton")

from llava_ref.gguf.types import TYPES
from llava_ref.kernels.planes import LAYOUTS, Planes, pack, unpack
from llava_ref.kernels.triton import matmul as module
from llava_ref.kernels.triton.matmul import matmul

from ..support.triton_device import DEVICE
from .test_planes import blocks

BOUND = {torch.float32: 1e-6, torch.float16: 6e-4}  # relative L2; 1.5e-7 and 4.5e-4 were the largest measured
GUARD = 64


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Fill new tensors with NaN and put canaries round them; no kernel may have touched one."""
    made, empty = [], torch.empty

    def guarded(*shape, dtype, device):
        (shape,) = (shape,) if isinstance(shape[0], int) else shape
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = torch.Size(shape).numel()
        memory = empty(size + 2 * GUARD, dtype=dtype, device=device).fill_(torch.nan)
        memory[:GUARD] = memory[-GUARD:] = 7
        made.append(memory)
        return memory[GUARD:-GUARD].view(shape)

    monkeypatch.setattr(module.torch, "empty", guarded)
    yield made
    assert made and all((m[:GUARD] == 7).all() and (m[-GUARD:] == 7).all() for m in made)


def matrix(kind: str, N: int, K: int, low: float = 1e-3, high: float = 2e-2) -> Planes:
    """Random weights whose float16 scales are between two values, of either sign."""
    b = blocks(kind, N, K).reshape(-1, TYPES[kind].bytes)
    d, at_random = LAYOUTS[kind].d, torch.Generator().manual_seed(N + K)
    for at in (d, d + 2) if LAYOUTS[kind].scale in ("f16x2", "k", "k16m") else (d,):
        scales = torch.empty_like(b[:, :1], dtype=torch.float32).uniform_(low, high, generator=at_random)
        scales *= 1 - 2 * torch.randint(2, scales.shape, generator=at_random)
        b[:, at : at + 2] = scales.half().view(torch.uint8)
    return pack(b.reshape(N, -1).to(DEVICE), kind, (N, K))


def rows_of_x(M: int, K: int) -> torch.Tensor:
    return torch.randn((M, K), generator=torch.Generator().manual_seed(M + K)).to(DEVICE)


def error(y: torch.Tensor, x: torch.Tensor, w: Planes) -> float:
    want = x.double() @ unpack(w).double().T
    assert y.shape == want.shape and y.dtype == torch.float32
    return float((y - want).norm() / want.norm())


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_every_type(kind, dtype):
    w, x = matrix(kind, 37, 1280), rows_of_x(17, 1280)
    assert error(matmul(x, w, dtype=dtype), x, w) < BOUND[dtype]


SHAPES = [(1, 3, 32), (9, 1, 32), (16, 65, 96), (17, 130, 1056), (64, 37, 2080), (100, 37, 64), (130, 5, 160)]


@pytest.mark.parametrize("M, N, K", SHAPES)
@pytest.mark.parametrize("kind", ["Q5_1", "Q8_0"])
def test_every_shape(kind, M, N, K):
    w, x = matrix(kind, N, K), rows_of_x(M, K)
    assert error(matmul(x, w), x, w) < BOUND[torch.float16]


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q2_K"])
def test_many_rows_and_a_shared_width(kind):
    """Tiles of 8 groups, and K shared among programs."""
    w, x = matrix(kind, 21, 3328), rows_of_x(65, 3328)
    assert module._parts(65, 21, 128, module.TILINGS[128]) == 4
    assert error(matmul(x, w), x, w) < BOUND[torch.float16]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_subnormal_scales(kind):
    """Every weight is a multiple of 2^-24 below 2^-5: float16 tiles hold them, exactly or rounded once."""
    w, x = matrix(kind, 9, 256, 1e-7, 6e-5), rows_of_x(9, 256)
    assert error(matmul(x, w), x, w) < BOUND[torch.float16]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_largest_scales(kind):
    w, x = matrix(kind, 9, 256, 5e4, 6e4), rows_of_x(9, 256)
    assert error(matmul(x, w, dtype=torch.float32), x, w) < BOUND[torch.float32]


def test_rows_of_x_of_any_size():
    """A row's values may be beyond float16, or all subnormal there; a row of zeros gives zeros."""
    w, x = matrix("Q4_K", 9, 512), rows_of_x(12, 512)
    powers = torch.tensor([1e30, 1e-30, 1.0, 1e5] * 3, device=DEVICE)[:, None]
    x *= powers
    x[2] = 0
    y = matmul(x, w)
    assert not y[2].any()
    assert error((y / powers).float(), x / powers, w) < BOUND[torch.float16]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_in_its_row(value):
    w, x = matrix("Q4_K", 9, 512), rows_of_x(12, 512)
    want = matmul(x, w)
    x[3, 100] = value
    y = matmul(x, w)
    assert not y[3].isfinite().any()
    y[3] = want[3]
    assert torch.equal(y, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_x_and_a_bias(dtype):
    w, x, bias = matrix("Q4_0", 9, 512), rows_of_x(12, 512).to(dtype), torch.arange(9, device=DEVICE) * 1.0
    y = matmul(x, w, bias=bias)
    assert torch.equal(y, matmul(x.float(), w) + bias)
    assert error(y - bias, x, w) < BOUND[torch.float16]


def test_a_part_of_the_rows():
    w, x = matrix("Q6_K", 40, 512), rows_of_x(12, 512)
    part, whole = matmul(x, w.part(5, 17)), matmul(x, w)[:, 5:17]
    # the interpreter multiplies by numpy, whose sums may depend on where a column stands
    assert (part - whole).norm() < 1e-6 * whole.norm()


def test_what_does_not_fit_is_refused():
    w, x = matrix("Q4_0", 9, 512), rows_of_x(12, 512)
    with pytest.raises(ValueError, match=r"x: expected \(M, 512\) without gaps, not \(12, 480\)"):
        matmul(x[:, :480], w)
    with pytest.raises(ValueError, match=r"without gaps, not \(12, 512\) of strides \(1, 12\)"):
        matmul(x.T.contiguous().T, w)
    with pytest.raises(ValueError, match="dtype: torch.float64 is not one of"):
        matmul(x, w, dtype=torch.float64)
    matmul(x, w)
