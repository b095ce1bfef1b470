"""Products of packed weights and 1 to 8 rows lie within 1e-4 of float64, and write nothing beside their outputs."""

from typing import get_args

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from llava_ref.gguf.types import TYPES
from llava_ref.kernels import reference
from llava_ref.kernels.planes import LAYOUTS, Planes, pack, unpack
from llava_ref.kernels.triton.activations import Activations, quantise
from llava_ref.kernels.triton.matvec import gated, matvec
from llava_ref.ops.protocol import Activation

from ..support.helpers import close, rand
from ..support.triton_device import DEVICE
from .test_planes import blocks

BOUND = 1e-4  # relRMS: two 8-bit terms give 2e-5 to 5e-5 for normal numbers
GUARD = 64


def matrix(kind: str, N: int, K: int, scale: float = 0.01) -> Planes:
    """Random weights, each float16 scale of a block between scale / 2 and scale, of either sign."""
    b, layout = blocks(kind, N, K).reshape(-1, TYPES[kind].bytes), LAYOUTS[kind]
    sign = np.sign(rand(len(b), 2, seed=1))
    values = torch.from_numpy(scale * sign * np.random.default_rng(2).uniform(0.5, 1, (len(b), 2))).half()
    count = 2 if layout.scale in ("f16x2", "k", "k16m") else 1
    b[:, layout.d : layout.d + 2 * count] = values[:, :count].contiguous().view(torch.uint8)
    return pack(b.reshape(N, -1).to(DEVICE), kind, (N, K))


def vectors(M: int, K: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rand(M, K, seed=seed)).to(DEVICE)


def guarded(M: int, N: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An output full of NaN between two canaries, and the memory that holds all three."""
    memory = torch.full((M * N + 2 * GUARD,), torch.nan, device=DEVICE)
    memory[:GUARD] = memory[-GUARD:] = 7
    return memory[GUARD:-GUARD].view(M, N), memory


def unharmed(memory: torch.Tensor) -> bool:
    return bool((memory[:GUARD] == 7).all() and (memory[-GUARD:] == 7).all())


def product(x: torch.Tensor, w: Planes) -> np.ndarray:
    return (x.double() @ unpack(w).double().T).cpu().numpy()


def check(x: torch.Tensor, w: Planes) -> None:
    """Compare matvec with float64 of the dequantised weights and of x itself."""
    out, memory = guarded(len(x), w.shape[0])
    assert matvec(quantise(x), w, out) is out
    close(out.cpu().numpy(), product(x, w), BOUND, f"{w.type} {w.shape}")
    assert unharmed(memory)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_type(kind):
    """Three trips or more, so that weights are loaded ahead inside the loop too."""
    K = 2080 if TYPES[kind].weights == 32 else 2304
    check(vectors(1, K), matrix(kind, 5, K))


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q2_K"])
def test_four_rows_at_once(kind):
    check(vectors(4, 1280), matrix(kind, 5, 1280))


@pytest.mark.parametrize("M", [2, 3, 5, 6, 7, 8])
def test_any_number_of_rows(M):
    check(vectors(M, 96), matrix("Q8_0", 5, 96))


@pytest.mark.parametrize("N, K", [(1, 32), (17, 160), (37, 96), (16, 1056)])
def test_any_shape(N, K):
    check(vectors(1, K), matrix("Q8_0", N, K))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("scale", [6e4, 3e-6])
def test_largest_and_subnormal_scales(kind, scale):
    check(vectors(1, 256), matrix(kind, 5, 256, scale))


def test_rows_of_very_different_values():
    """A tail that reaches 1e6 times the median, and a group of zeros: a group's largest value sets its error."""
    x = vectors(2, 1024).pow(9)
    x[:, 64:96] = 0
    check(x, matrix("Q5_0", 5, 1024))


def test_what_comes_behind_the_columns_is_not_read_as_weights():
    """Terms behind K meet weights of zero scale: another row's numbers there change nothing."""
    w, x = matrix("Q4_K", 5, 256), vectors(1, 1024)
    close(matvec(quantise(x), w).cpu().numpy(), product(x[:, :256], w), BOUND)


def test_bias_and_residual_are_added_in_place():
    w, x, bias, residual = matrix("Q5_K", 37, 256), vectors(3, 256), vectors(1, 37, 1)[0], vectors(3, 37, 2)
    want = product(x, w) + bias.double().cpu().numpy() + residual.double().cpu().numpy()
    out, memory = guarded(3, 37)
    out.copy_(residual)
    matvec(quantise(x), w, out, bias=bias, add=out, pdl=True)
    close(out.cpu().numpy(), want, BOUND)
    assert unharmed(memory)


def test_a_part_of_a_matrix_gives_its_outputs():
    w, x = matrix("Q6_K", 21, 512), quantise(vectors(1, 512))
    assert torch.equal(matvec(x, w.part(4, 21)), matvec(x, w)[:, 4:])


def gated_reference(x: torch.Tensor, w: Planes, kind: Activation) -> np.ndarray:
    gate, up = torch.from_numpy(product(x, w)).chunk(2, -1)
    return (getattr(reference, kind)(gate) * up).numpy()


@pytest.mark.parametrize("kind, F", [("Q4_K", 42), ("Q6_K", 64), ("Q3_K", 33), ("IQ4_NL", 40)])
def test_gated_halves(kind, F):
    """Outputs are quantised as `quantise` would, and the last group is filled up with zeros."""
    w, x = matrix(kind, 2 * F, 256), vectors(1, 256)
    out = Activations.empty(1, F, DEVICE)
    out.x[:, :64], out.scale[:, :2], out.sums[:, :4] = torch.nan, torch.nan, torch.nan
    out.first[:, :16] = out.second[:, :16] = -1
    assert gated(quantise(x), w, "silu", out) is out
    close(out.x[:, :F].cpu().numpy(), gated_reference(x, w, "silu"), 2 * BOUND, kind)
    again = quantise(out.x[:, :F].contiguous())
    for name in ("x", "first", "second", "scale"):
        assert torch.equal(getattr(out, name), getattr(again, name)), name
    torch.testing.assert_close(out.sums, again.sums)
    assert not out.x[:, F:].any() and not out.first[:, 16:].any() and not out.scale[:, 2:].any()


@pytest.mark.parametrize("kind", get_args(Activation))
@pytest.mark.parametrize("M", [2, 5])
def test_gated_halves_of_any_number_of_rows(kind, M):
    w, x = matrix("Q8_0", 36, 96, 3e-3), vectors(M, 96)
    close(gated(quantise(x), w, kind, pdl=True).x[:, :18].cpu().numpy(), gated_reference(x, w, kind), 2 * BOUND)


@pytest.mark.parametrize(
    "name, call",
    [
        ("x", lambda x, w: matvec(quantise(vectors(9, 256)), w)),
        ("x", lambda x, w: matvec(quantise(vectors(1, 2048)), w)),
        ("out", lambda x, w: matvec(x, w, torch.empty(2, 6, dtype=torch.float16, device=DEVICE))),
        ("bias", lambda x, w: matvec(x, w, bias=vectors(1, 6))),
        ("add", lambda x, w: matvec(x, w, add=vectors(6, 2).T)),
        ("kind", lambda x, w: gated(x, w, "relu")),
        ("w", lambda x, w: gated(x, w.part(0, 5), "silu")),
        ("out", lambda x, w: gated(x, w, "silu", Activations.empty(1, 3, DEVICE))),
    ],
)
def test_what_does_not_fit_is_refused(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        call(quantise(vectors(2, 256)), matrix("Q8_0", 6, 256))
