"""How ggml's CPU backend rounds the activations of a matrix product, which depends on the type of the weights.

T rows, K width, n blocks of a row. Source: llama.cpp b10605, ggml/src/ggml-cpu: ggml-cpu.c:214-415 (which type),
arch/x86/quants.c:331-351 and ggml-quants.c:2768-2805 (how). ARM and RISC-V builds round some halves the other way.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from ...gguf.types import TYPES

Rounding = Literal["F32", "F16", "BF16", "Q8_0", "Q8_1", "Q8_K"]
ROUNDING: Mapping[str, Rounding] = {  # type of the weights -> what activations become; a type not here has no kernel
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4"), "Q8_0"),
    **dict.fromkeys(("Q4_1", "Q5_1"), "Q8_1"),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "IQ4_XS"), "Q8_K"),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), "Q8_K"),
}
SMALLEST = np.float32(2**-120)  # where the largest number of a block is smaller, 127 / it is infinite: taken for 0


def rounded(x: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Round activations as the kernel does that multiplies by them.  (T, K) float32 -> (T, K) float32"""
    match rounding:
        case "F32":
            return x
        case "F16":
            return half(x)
        case "BF16":
            return bfloat16(x)
        case "Q8_0" | "Q8_1":
            codes, d = blocks_of_32(x)
            return (codes * half(d)[..., None]).reshape(x.shape)
        case "Q8_K":
            codes, d = blocks_of_256(x)
            return (codes * d[..., None]).reshape(x.shape)


def half(x: np.ndarray) -> np.ndarray:
    """Round to float16, ties to even, and back. Beyond 65504: infinity."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Round to the upper 16 bits of a float32, ties to even, and back."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    kept = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, kept.view(np.float32))


def blocks_of_32(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q8_0 and Q8_1: codes (T, n, 32), whole numbers -127..127 as float32, and scales d (T, n) float32 before they are
    stored as float16. x is about codes * d; a code is rint(x * (127 / max |x|)), ties to even."""
    x = x.reshape(len(x), -1, 32)
    largest = np.abs(x).max(-1)
    d = largest / np.float32(127)
    inverse = np.float32(127) / np.maximum(largest, SMALLEST)
    return np.rint(x * inverse[..., None]), d


def blocks_of_256(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q8_K: codes (T, n, 256) as float32 and scales (T, n) float32. The number of largest magnitude, the first of them
    where several tie, becomes -127 exactly, so that the scale has the other sign."""
    x = x.reshape(len(x), -1, 256)
    largest = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
    zero = np.abs(largest) < SMALLEST
    inverse = np.float32(-127) / np.where(zero, 1, largest)
    return np.rint(x * inverse[..., None]), np.where(zero, 0, 1 / inverse)


def sum_errors(x: np.ndarray) -> np.ndarray:
    """Return the error of Q8_1 in the sum of each block's rounded activations, (T, n) float32: the sum is stored apart,
    as float16(d * sum of codes), and multiplies the weights' minimum."""
    codes, d = blocks_of_32(x)
    total = codes.sum(-1)
    return half(d * total) - half(d) * total


def minima(data: memoryview, kind: str, rows: int) -> np.ndarray:
    """Read the minimum m of every block of a Q4_1 or Q5_1 matrix, (rows, n) float32: bytes 2 and 3 of a block."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, TYPES[kind].bytes)
    return blocks[:, 2:4].copy().view(np.float16).astype(np.float32).reshape(rows, -1)
