"""Make random weights in every type that a GGUF file can hold, also those the `gguf` package cannot quantise to.

A tensor is made of random blocks: every byte of codes, signs and sub-scales is drawn at random, and the scales of the
blocks are then set so that the weights they stand for have the size that a model needs. Nothing is quantised, so
nothing about a quantiser is tested; block layouts are those of ggml-common.h, llama.cpp b10605.
"""

from collections.abc import Sequence
from functools import cache

import gguf
import numpy as np

from llava_ref.errors import ParameterError
from llava_ref.gguf.types import TYPES

SCALE = {  # the byte at which a block holds its float16 scale d
    "Q4_0": 0, "Q4_1": 0, "Q5_0": 0, "Q5_1": 0, "Q8_0": 0, "Q2_K": 80, "Q3_K": 108, "Q4_K": 0, "Q5_K": 0, "Q6_K": 208,
    "IQ2_XXS": 0, "IQ2_XS": 0, "IQ2_S": 0, "IQ3_XXS": 0, "IQ3_S": 0, "IQ1_S": 0, "IQ4_NL": 0, "IQ4_XS": 0,
    "TQ1_0": 52, "TQ2_0": 64,
}  # fmt: skip
# The second float16, two bytes after d, in units of d, so that the mean of the weights is about 0: Q4_1 and Q5_1 add
# it to d * code; the K types subtract it times a sub-scale, drawn from the same numbers as the sub-scale of the code.
SECOND = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}
PLAIN = ("F32", "F16", "BF16")
KINDS = (*PLAIN, *SCALE, "IQ1_M", "MXFP4", "NVFP4")
"""The types that `random_tensor` makes: every type of `gguf.types.TYPES` that holds weights."""


def random_tensor(kind: str, rows: int, columns: int, seed: int | Sequence[int], *, gain: float = 1.0) -> np.ndarray:
    """Make a matrix (rows, columns) of type `kind` as a file holds it: (rows, bytes of a row) uint8.

    The weights have mean about 0 and standard deviation about `gain` / sqrt(columns), the size that keeps x @ w.T as
    large as x (MXFP4 has only powers of 2 as scales: within a factor of 1.5), and none is beyond 6 of those. Rows of
    256 that share one scale differ most: norms between 0.3 and 2 gains. The same arguments give the same bytes.
    To write one: `writer.add_tensor(name, random_tensor(...), raw_dtype=gguf.GGMLQuantizationType[kind])`.
    Raises ParameterError if there is no such kind, or its blocks do not fill a row."""
    if kind not in KINDS:
        raise ParameterError("type", repr(kind), f"unknown, expected one of {', '.join(KINDS)}")
    block = TYPES[kind]
    if columns % block.weights:
        raise ParameterError("type", kind, f"rows of {columns}, expected a multiple of {block.weights}")
    std = gain / columns**0.5
    parts = [seed] if isinstance(seed, int) else list(seed)
    rng = np.random.default_rng([*parts, *kind.encode()])
    if kind in PLAIN:
        return _plain(kind, (std * rng.standard_normal((rows, columns))).astype(np.float32))
    n = rows * columns // block.weights
    return _blocks(kind, n, std / _unit(kind), rng).reshape(rows, -1)


def _plain(kind: str, x: np.ndarray) -> np.ndarray:
    bytes_: np.ndarray = gguf.quantize(x, gguf.GGMLQuantizationType[kind]).view(np.uint8)
    return bytes_


@cache
def _unit(kind: str) -> float:
    """Return the standard deviation of the weights of blocks whose scale is about 1."""
    blocks = _blocks(kind, 2048, 1.0, np.random.default_rng(0))
    weights = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    return float(np.sqrt(np.square(weights, dtype=np.float64).mean()))


def _blocks(kind: str, n: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Make n blocks (n, bytes) uint8 whose scales are between 0.5 and 1.5 times `scale`, of both signs if the weights
    are symmetric about 0 apart from their sign."""
    blocks = _codes(kind, n, rng)
    d = scale * rng.uniform(0.5, 1.5, n)
    match kind:
        case "MXFP4":  # one byte e, 2 ** (e - 128)
            blocks[:, 0] = np.clip(np.rint(np.log2(d)) + 128, 2, 254)
        case "NVFP4":  # four bytes, each a float of 4 exponent and 3 mantissa bits; 0 and 127 mean 0
            wanted = scale * rng.uniform(0.5, 1.5, (n, 4))
            blocks[:, :4] = 1 + np.abs(wanted[..., None] - _ue4m3()[1:127]).argmin(-1)
        case "IQ1_M":  # the nibbles of d, lowest first, are the top nibbles of four 16-bit words at byte 48
            bits = d.astype(np.float16).view(np.uint16)
            words = blocks[:, 48:].view(np.uint16)
            words[:] = words & 0x0FFF | (bits[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15) << 12
        case _:
            sign = 1 if kind in SECOND else rng.choice([-1, 1], n)
            _put(blocks, SCALE[kind], d * sign)
            if kind in SECOND:
                _put(blocks, SCALE[kind] + 2, d * SECOND[kind])
    return blocks


def _codes(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random bytes (n, bytes); for the ternary types only bytes that their quantisers write."""
    shape = (n, TYPES[kind].bytes)
    if (
        kind == "TQ1_0"
    ):  # five base-3 digits: v of 0..242 is stored as ceil(v * 256 / 243); the last four bytes hold four
        digits = rng.integers(0, 243, shape)
        digits[:, 48:52] -= digits[:, 48:52] % 3
        return np.ceil(digits * 256 / 243).astype(np.uint8)
    if kind == "TQ2_0":  # four 2-bit codes, 3 is never used
        return (rng.integers(0, 3, (*shape, 4)) << np.arange(0, 8, 2)).sum(-1).astype(np.uint8)
    return rng.integers(0, 256, shape, np.uint8)


def _put(blocks: np.ndarray, at: int, values: np.ndarray) -> None:
    blocks[:, at : at + 2] = values.astype(np.float16)[:, None].view(np.uint8)


def _ue4m3() -> np.ndarray:
    """Return the value of each byte 0..127, (128,) float64; codes 0..7 are subnormal."""
    code = np.arange(128)
    return np.where(code < 8, code / 512, (1 + (code & 7) / 8) * 2.0 ** ((code >> 3) - 7))
