"""The types whose weights are rows of a fixed grid: raw blocks -> float32 in torch.

As `torch_quants`: b is (n, bytes of a block) uint8, the result (n, 256) float32. The grids and the table of signs are
data of the formats (ggml-common.h) and are taken from the `gguf` package, which holds them packed.
"""

from functools import cache

import gguf.quants
import numpy as np
import torch
from torch import Tensor

from .torch_bits import aligned, bits, fields, half


@cache
def _grid(kind: str, device: torch.device) -> Tensor:
    """Return the rows of a type's grid, (rows, 4 or 8) float32."""
    source = getattr(gguf.quants, kind)
    source.init_grid()
    return torch.tensor(source.grid[0, 0], device=device)


@cache
def _signs(device: torch.device) -> Tensor:
    """Seven bits -> eight signs, the last one making the number of minuses even: (128, 8) float32"""
    codes = np.frombuffer(gguf.quants.IQ2_XXS.ksigns, np.uint8)
    return 1 - 2 * bits(torch.tensor(codes)[:, None]).float().to(device)


def _words(b: Tensor) -> Tensor:
    """Read 32-bit words: (n, 4k) uint8 -> (n, k) int32"""
    return aligned(b).view(torch.int32)


def _shorts(b: Tensor) -> Tensor:
    """Read 16-bit words: (n, 2k) uint8 -> (n, k) int32, not negative"""
    return aligned(b).view(torch.int16).int() & 0xFFFF


def _fields(words: Tensor, width: int, count: int) -> Tensor:
    """Split each word into `count` fields, lowest first: (n, k) -> (n, k, count) int32"""
    shifts = torch.arange(0, width * count, width, dtype=torch.int32, device=words.device)
    return words[..., None] >> shifts & (1 << width) - 1


def _nibbles(b: Tensor) -> Tensor:
    """Both nibbles of each byte, byte after byte: (n, k) uint8 -> (n, 2k) float32"""
    return fields(b[..., None], 4).flatten(1).float()


def _spread(scale: Tensor, rows: Tensor) -> Tensor:
    """Multiply each scale with its share of the weights: (n, k), (n, ...) of 256 weights -> (n, 256)"""
    return (scale[..., None] * rows.reshape(*scale.shape, -1)).flatten(1)


def iq2_xxs(b: Tensor) -> Tensor:
    """Unpack IQ2_XXS: d, 8 pairs of words: four grid indices in the bytes of the first; four sign codes of 7 bits and
    a scale of 4 in the second, for 32 weights.  w = d (s + 1/2) / 4 * grid * sign"""
    words = _words(b[:, 2:]).reshape(-1, 8, 2)
    scale = half(b[:, :2]) * (0.5 + (words[..., 1] >> 28 & 15).float()) * 0.25
    grid = _grid("IQ2_XXS", b.device)[_fields(words[..., 0], 8, 4)]  # (n, 8, 4, 8)
    return _spread(scale, grid * _signs(b.device)[_fields(words[..., 1], 7, 4)])


def iq2_xs(b: Tensor) -> Tensor:
    """Unpack IQ2_XS: d, 32 shorts (grid index of 9 bits, sign code of 7), 16 scales of 4 bits.  w = d (s + 1/2) / 4 *
    grid * sign"""
    shorts = _shorts(b[:, 2:66])
    scale = half(b[:, :2]) * (0.5 + _nibbles(b[:, 66:])) * 0.25
    return _spread(scale, _grid("IQ2_XS", b.device)[shorts & 511] * _signs(b.device)[shorts >> 9])


def iq2_s(b: Tensor) -> Tensor:
    """Unpack IQ2_S: d, 32 bytes of grid indices, 32 bytes of signs, 8 bytes of the indices' top pairs, 16 scales of 4
    bits."""
    index = b[:, 2:34].int() | fields(b[:, 66:74, None], 2).flatten(1).int() << 8
    scale = half(b[:, :2]) * (0.5 + _nibbles(b[:, 74:])) * 0.25
    return _spread(scale, _grid("IQ2_S", b.device)[index].flatten(1) * (1 - 2 * bits(b[:, 34:66]).float()))


def iq3_xxs(b: Tensor) -> Tensor:
    """Unpack IQ3_XXS: d, 64 bytes of indices of rows of four, 8 words (four sign codes of 7 bits, a scale of 4) for 32
    weights each.

    w = d (s + 1/2) / 2 * grid * sign"""
    words = _words(b[:, 66:])
    scale = half(b[:, :2]) * (0.5 + (words >> 28 & 15).float()) * 0.5
    grid = _grid("IQ3_XXS", b.device)[b[:, 2:66].int()].flatten(1)
    return _spread(scale, grid * _signs(b.device)[_fields(words, 7, 4)].flatten(1))


def iq3_s(b: Tensor) -> Tensor:
    """Unpack IQ3_S: d, 64 bytes of indices of rows of four, 64 ninth bits, 32 bytes of signs, 8 scales of 4 bits.

    w = d (1 + 2 s) * grid * sign"""
    index = b[:, 2:66].int() | bits(b[:, 66:74]).int() << 8
    scale = half(b[:, :2]) * (1 + 2 * _nibbles(b[:, 106:]))
    return _spread(scale, _grid("IQ3_S", b.device)[index].flatten(1) * (1 - 2 * bits(b[:, 74:106]).float()))


def iq1_s(b: Tensor) -> Tensor:
    """Unpack IQ1_S: d, 32 bytes of grid indices, 8 shorts (four tops of 3 bits, a scale of 3, the shift's sign) for 32
    weights each.

    w = d (2 s + 1) (grid + 1/8 or - 1/8)"""
    shorts = _shorts(b[:, 34:])
    index = b[:, 2:34].int() | _fields(shorts, 3, 4).flatten(1) << 8
    shift = torch.where(shorts & 0x8000 == 0, 0.125, -0.125)[..., None]
    grid = _grid("IQ1_S", b.device)[index].reshape(-1, 8, 32)
    return _spread(half(b[:, :2]) * (2 * (shorts >> 12 & 7) + 1).float(), grid + shift)


def iq1_m(b: Tensor) -> Tensor:
    """Unpack IQ1_M: 32 bytes of grid indices, 32 nibbles (top of 3 bits, the shift's sign) for 8 weights each, 4
    shorts: each four scales of 3 bits for 16 weights, and a nibble of d at the top.  w = d (2 s + 1) (grid + 1/8 or -
    1/8)"""
    shorts, nibbles = _shorts(b[:, 48:]), fields(b[:, 32:48, None], 4).flatten(1).int()
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=b.device)
    d = ((shorts >> 12) << shifts).sum(1, keepdim=True).to(torch.int16).view(torch.float16).float()
    index = b[:, :32].int() | (nibbles & 7) << 8
    shift = torch.where(nibbles & 8 == 0, 0.125, -0.125)[..., None]
    scale = d * (2 * _fields(shorts, 3, 4).flatten(1) + 1).float()
    return _spread(scale, _grid("IQ1_M", b.device)[index] + shift)
