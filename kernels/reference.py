"""Define each operation in a few lines of torch, correct in any precision: a kernel is checked against this page.

T, S positions, D, K width in, N width out, H query heads, Hkv key/value heads, dh head size, P patch size. Given
float64 an operation computes in float64; anything narrower is computed in float32 and rounded once at the end.
"""

import math
from typing import Literal

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Convert to the type of the computation: float64 stays, anything narrower becomes float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Return x w^T + b.  (T, K) (N, K) (N,) -> (T, N)"""
    y = wide(x) @ wide(w).T
    return (y if b is None else y + wide(b)).to(x.dtype)


def layer_norm(x: Tensor, w: Tensor, b: Tensor | None, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * w + b, var the mean squared deviation.  (T, D) (D,) (D,) -> (T, D)

    Ba, Kiros, Hinton 2016, https://arxiv.org/abs/1607.06450"""
    h = wide(x)
    h = h - h.mean(-1, keepdim=True)
    y = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * wide(w)
    return (y if b is None else y + wide(b)).to(x.dtype)


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * w.  (T, D) (D,) -> (T, D)

    Zhang, Sennrich 2019, https://arxiv.org/abs/1910.07467"""
    h = wide(x)
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * wide(w)).to(x.dtype)


def depthwise(x: Tensor, kernel: Tensor, places: Tensor) -> Tensor:
    """Sum k rows for each of N, each channel by its own numbers.  (n, D) (D, k) (k, N), -1 for zeros -> (N, D)"""
    padded = torch.cat((x, torch.zeros_like(x[:1])))
    return (padded[places] * kernel.T[:, None]).sum(0)


def gelu_erf(x: Tensor) -> Tensor:
    """Return x * Phi(x), Phi the normal distribution function.  Hendrycks, Gimpel 2016, https://arxiv.org/abs/1606.08415"""
    h = wide(x)
    return (0.5 * h * (1 + torch.erf(h / math.sqrt(2)))).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """Approximate GELU by tanh, section 2 of the same paper: ggml's `gelu`."""
    h = wide(x)
    return (0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))).to(x.dtype)


def gelu_quick(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x): OpenAI CLIP's QuickGELU (openai/CLIP model.py)."""
    h = wide(x)
    return (h * torch.sigmoid(1.702 * h)).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x)."""
    h = wide(x)
    return (h * torch.sigmoid(h)).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor, pairs: Literal["adjacent", "halves"] = "adjacent") -> Tensor:
    """Turn each pair of channels by the angle of the row's position.  (T, H, dh) (T, dh/2) (T, dh/2) -> (T, H, dh)

    Pair i is channels 2i and 2i + 1 ("adjacent", ggml's NORM type: GGUF files of the llama architecture store Q and K
    so), or i and i + dh/2 ("halves", ggml's NEOX type).  Su et al. 2021, https://arxiv.org/abs/2104.09864, equation
    34."""
    c, s = cos[:, None, :], sin[:, None, :]
    if pairs == "halves":
        first, second = wide(x).chunk(2, -1)
        return torch.cat((first * c - second * s, first * s + second * c), -1).to(x.dtype)
    even, odd = wide(x[..., 0::2]), wide(x[..., 1::2])
    return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Return softmax(q k^T * scale + mask) v, heads side by side.

    (T, H, dh) (S, Hkv, dh) (S, Hkv, dh) (T, S) -> (T, H * dh). Query head h reads key/value head h // (H / Hkv).
    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; grouped as in Ainslie et al. 2023,
    https://arxiv.org/abs/2305.13245."""
    weights = attention_weights(wide(q), wide(k), scale, mask)
    return attention_values(weights, wide(v)).to(q.dtype)


def attention_weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Return softmax(q k^T * scale + mask), every row a distribution.  (T, H, dh) (S, Hkv, dh) (T, S) -> (H, T, S)"""
    (T, H, dh), Hkv = q.shape, k.shape[1]
    queries = wide(q).reshape(T, Hkv, H // Hkv, dh).permute(1, 2, 0, 3)  # (Hkv, H/Hkv, T, dh)
    scores = queries @ wide(k).permute(1, 2, 0)[:, None] * scale  # (Hkv, H/Hkv, T, S)
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1).reshape(H, T, -1).to(q.dtype)


def attention_values(weights: Tensor, v: Tensor) -> Tensor:
    """Return the weighted means of the values, heads side by side.  (H, T, S) (S, Hkv, dh) -> (T, H * dh)"""
    (H, T, S), (_, Hkv, dh) = weights.shape, v.shape
    groups = wide(weights).reshape(Hkv, H // Hkv, T, S)
    y = groups @ wide(v).permute(1, 0, 2)[:, None]  # (Hkv, H/Hkv, T, dh)
    return y.permute(2, 0, 1, 3).reshape(T, H * dh).to(v.dtype)


def squares(pixels: Tensor, P: int) -> Tensor:
    """Cut a picture into P x P squares, row by row.  (3, Y, X) -> (Y/P * X/P, 3 * P * P)"""
    C, Y, X = pixels.shape
    return pixels.reshape(C, Y // P, P, X // P, P).permute(1, 3, 0, 2, 4).reshape(-1, C * P * P)


def patches(pixels: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Map each square by one linear map: a convolution of stride P.  (3, Y, X) (D, 3, P, P) (D,) -> (Y/P * X/P, D)

    Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929"""
    return linear(squares(pixels, w.shape[-1]), w.reshape(w.shape[0], -1), b)
