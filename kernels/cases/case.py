"""What the files of cases share: the case, random rows and matrices, bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_ref.conformance.pairs.random_blocks import random_tensor
from llava_ref.gguf.file import TensorView
from llava_ref.ops.arrays import Activation
from llava_ref.ops.torch_quants import dequantize

from .. import reference
from ..planes import Planes, pack

TERMS, FLOAT32, FLOAT16 = 1e-4, 2e-6, 8e-4
"""Largest relative RMS error: of rows in two 8-bit terms, of float32 arithmetic, of float16 tiles summed in float32."""
EPS = 1e-5
Both = tuple[Tensor, Tensor]
"""What a kernel computes, and float64 of its definition."""


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One launch of a kernel."""

    kernel: str
    """Its file and function: "matvec.gated"."""
    sort: str
    """Which launch: a weight type, a shape."""
    bound: float
    run: Callable[[], Both]


def rand(*shape: int, seed: int = 0, device: str = "cpu") -> Tensor:
    """Return normal numbers, float32; the same for the same shape and seed."""
    found = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(found).to(device)


def weights(kind: str, N: int, K: int, device: str) -> tuple[Planes, Tensor]:
    """Return a matrix of random blocks as planes, and its weights in float64."""
    blocks = random_tensor(kind, N, K, 1)
    view = TensorView(kind, kind, (N, K), memoryview(bytearray(blocks.tobytes())))
    planes = pack(torch.from_numpy(blocks).to(device), kind, (N, K))
    return planes, dequantize(view, "cpu").double().to(device)


def terms(a: Any, K: int) -> Tensor:
    """Return the rows that two 8-bit terms stand for.  Activations -> (M, K) float64"""
    first, second = (t.view(torch.int8).double() for t in (a.first, a.second))
    scale = a.scale.double().repeat_interleave(32, 1)
    return (scale * (first + second / 254))[:, :K]


def activated(kind: Activation, x: Tensor) -> Tensor:
    """Return the activation of x in float64."""
    found: Tensor = getattr(reference, kind)(x.double())
    return found
