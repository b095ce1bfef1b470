"""Fields of bytes, in torch: what the block formats have in common."""

import torch
from torch import Tensor


def aligned(b: Tensor) -> Tensor:
    """Copy to an address that any element type may be viewed at."""
    return b.clone(memory_format=torch.contiguous_format)


def half(b: Tensor) -> Tensor:
    """Float16 numbers: (n, 2k) uint8 -> (n, k) float32"""
    return aligned(b).view(torch.float16).float()


def fields(b: Tensor, width: int) -> Tensor:
    """Split each byte into 8 / width fields, all lowest ones first: (..., m) uint8 -> (..., 8 / width, m) uint8"""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=b.device)[:, None]
    return b[..., None, :] >> shifts & (1 << width) - 1


def bits(b: Tensor) -> Tensor:
    """Split each byte into bits, lowest first, byte after byte: (n, m) uint8 -> (n, 8 m) uint8"""
    return fields(b[..., None], 1).flatten(1)
