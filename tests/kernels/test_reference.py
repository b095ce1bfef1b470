"""The definitions against torch's own operations, in float64 and in the narrow types."""

import pytest
import torch
from torch.nn import functional as F

from llava_ref.kernels import reference as ref

WIDTHS = [(1, 1), (2, 128), (5, 123), (3, 1000)]  # odd sizes on purpose


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("T, D", WIDTHS)
def test_layer_norm(T, D):
    x, w, b = 3 * rand(T, D) + 2, rand(D), rand(D)
    torch.testing.assert_close(ref.layer_norm(x, w, b, 1e-5), F.layer_norm(x, (D,), w, b, 1e-5))
    torch.testing.assert_close(ref.layer_norm(x, w, None, 0.05), F.layer_norm(x, (D,), w, None, 0.05))


@pytest.mark.parametrize("T, D", WIDTHS)
def test_rms_norm(T, D):
    x, w = rand(T, D), rand(D)
    torch.testing.assert_close(ref.rms_norm(x, w, 1e-5), F.rms_norm(x, (D,), w, 1e-5))
    if D > 1:
        assert not torch.allclose(ref.rms_norm(x, w, 1e-5), F.rms_norm(x, (D,), w, 2e-1))


def test_activations():
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    torch.testing.assert_close(ref.gelu_erf(x), F.gelu(x))
    torch.testing.assert_close(ref.gelu_tanh(x), F.gelu(x, approximate="tanh"))
    torch.testing.assert_close(ref.silu(x), F.silu(x))
    torch.testing.assert_close(ref.gelu_quick(x), x / (1 + torch.exp(-1.702 * x)))
    assert (ref.gelu_erf(x) - ref.gelu_tanh(x)).abs().max() > 1e-4  # the variants can be told apart


@pytest.mark.parametrize("H, Hkv", [(4, 4), (6, 2), (3, 1)], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("T, S", [(1, 1), (7, 7), (3, 11)])
def test_attention(H, Hkv, T, S):
    dh = 5
    q, k, v = rand(T, H, dh), rand(S, Hkv, dh), rand(S, Hkv, dh)
    mask = torch.zeros(T, S, dtype=torch.float64).masked_fill(torch.ones(T, S).triu(S - T + 1).bool(), -torch.inf)
    heads = (a.permute(1, 0, 2) for a in (q, k.repeat_interleave(H // Hkv, 1), v.repeat_interleave(H // Hkv, 1)))
    want = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=0.3).permute(1, 0, 2).reshape(T, H * dh)
    torch.testing.assert_close(ref.attention(q, k, v, 0.3, mask), want)


def test_rope_is_a_complex_product():
    x, angle = rand(5, 3, 8), rand(5, 4)
    turned = torch.view_as_complex(x.reshape(5, 3, 4, 2)) * torch.polar(torch.ones_like(angle), angle)[:, None]
    torch.testing.assert_close(ref.rope(x, angle.cos(), angle.sin()), torch.view_as_real(turned).flatten(-2))


def test_rope_of_halves_is_the_same_product():
    x, angle = rand(5, 3, 8), rand(5, 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    want = torch.cat((turned.real, turned.imag), -1)
    torch.testing.assert_close(ref.rope(x, angle.cos(), angle.sin(), "halves"), want)


def test_patches_are_a_strided_convolution():
    x, w, b = rand(3, 12, 20), rand(7, 3, 4, 4), rand(7)
    want = F.conv2d(x[None], w, b, stride=4)[0].flatten(1).T
    torch.testing.assert_close(ref.patches(x, w, b), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_narrow_type_is_rounded_once(dtype):
    x, w, b = rand(4, 96, dtype=dtype), rand(96, dtype=dtype), rand(96, dtype=dtype)
    exact = ref.layer_norm(x.double(), w.double(), b.double(), 1e-5)
    error = (ref.layer_norm(x, w, b, 1e-5).double() - exact).abs()
    assert (error <= exact.abs() * torch.finfo(dtype).eps / 2 + 1e-6).all()
