"""Convert raw blocks to float32 in torch, on any device: one function a type, whose docstring draws the block.

Every function takes b, (n, bytes of a block) uint8, and gives (n, weights of a block) float32, in the arithmetic of the
`gguf` package (gguf/quants.py 0.19), bit for bit. Layouts: ggml-common.h and ggml-quants.c of llama.cpp b10605.
`d`, `m` are float16 scales; a field of a byte is counted from its lowest bit.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..gguf.file import TensorView
from ..gguf.types import TYPES
from . import torch_grids as grids
from .torch_bits import bits, fields, half

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
PLAIN |= {"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}  # types torch has itself
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}  # weights converted at a time: what is in between stays in a core's cache
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice the value: OCP Microscaling Formats 1.0
NL4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # kvalues_iq4nl, ggml-common.h


def raw(view: TensorView, device: str) -> Tensor:
    """Return a tensor's bytes on the device, (n,) uint8. On the CPU nothing is copied: they are the file's own pages;
    do not write to them."""
    return torch.frombuffer(view.data, dtype=torch.uint8).to(device)


def dequantize(view: TensorView, device: str) -> Tensor:
    """Dequantise a tensor to float32 of `view.shape`. F32 on the CPU is not copied, as in `raw`."""
    return _dequantize(raw(view, device), view.type).reshape(view.shape)


def decode(blocks: Tensor, kind: str) -> Tensor:
    """Dequantise whole rows of a matrix.  (n, bytes of a row) uint8 -> (n, K) float32"""
    return _dequantize(blocks.reshape(-1), kind).reshape(len(blocks), -1)


def _dequantize(data: Tensor, kind: str) -> Tensor:
    if kind in PLAIN:
        if data.data_ptr() % TYPES[kind].bytes:  # a file may ask for an alignment of 1
            data = data.clone()
        return data.view(PLAIN[kind]).to(torch.float32)
    weights = TYPES[kind].weights
    blocks, step = data.reshape(-1, TYPES[kind].bytes), CHUNK[data.device.type] // weights
    out = torch.empty((len(blocks), weights), dtype=torch.float32, device=data.device)
    for source, target in zip(torch.split(blocks, step), torch.split(out, step), strict=True):
        target.copy_(BLOCKS[kind](source))
    return out


@cache
def _constant(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Upload numbers once: a graph that is being recorded may copy nothing from the host."""
    return torch.tensor(values, dtype=dtype, device=device)


def _table(values: tuple[int, ...], index: Tensor) -> Tensor:
    return _constant(values, torch.float32, index.device)[index.int()]


def q4_0(b: Tensor) -> Tensor:
    """Unpack Q4_0: d, 16 bytes: weight j in the low nibble of byte j, weight j + 16 in the high one.  w = d (q - 8)"""
    return half(b[:, :2]) * (fields(b[:, 2:], 4).flatten(1).float() - 8)


def q4_1(b: Tensor) -> Tensor:
    """Unpack Q4_1: d, m, 16 bytes of nibbles as Q4_0.  w = d q + m"""
    return half(b[:, :2]) * fields(b[:, 4:], 4).flatten(1).float() + half(b[:, 2:4])


def q5_0(b: Tensor) -> Tensor:
    """Unpack Q5_0: d, 32 fifth bits, 16 bytes of nibbles as Q4_0.  w = d (q - 16)"""
    q = fields(b[:, 6:], 4).flatten(1) | bits(b[:, 2:6]) << 4
    return half(b[:, :2]) * (q.float() - 16)


def q5_1(b: Tensor) -> Tensor:
    """Unpack Q5_1: d, m, 32 fifth bits, 16 bytes of nibbles as Q4_0.  w = d q + m"""
    q = fields(b[:, 8:], 4).flatten(1) | bits(b[:, 4:8]) << 4
    return half(b[:, :2]) * q.float() + half(b[:, 2:4])


def q8_0(b: Tensor) -> Tensor:
    """Unpack Q8_0: d, 32 int8.  w = d q"""
    return b[:, 2:].view(torch.int8).float() * half(b[:, :2])


def q2_k(b: Tensor) -> Tensor:
    """Unpack Q2_K: 16 bytes of scale and minimum nibbles, 64 bytes of 2-bit fields, d, m.  w = d s q - m t, s and t
    for 16 weights

    Each 32 bytes hold 128 weights: the lowest fields of all 32 first."""
    d, m, scales = half(b[:, 80:82]), half(b[:, 82:84]), b[:, :16]
    q = fields(b[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16).float()
    return ((d * (scales & 15).float())[..., None] * q - (m * (scales >> 4).float())[..., None]).flatten(1)


def q3_k(b: Tensor) -> Tensor:
    """Unpack Q3_K: 32 bytes of third bits, 64 bytes of 2-bit fields as Q2_K, 12 bytes of scales, d.  w = d (s - 32) (q
    - 4 if bit 0)

    16 scales of 6 bits: low nibbles in the nibbles of bytes 0..7, high pairs in the fields of bytes 8..11."""
    s = fields(b[:, 96:104], 4).flatten(1) | fields(b[:, 104:108], 2).flatten(1) << 4
    d = half(b[:, 108:110]) * (s.float() - 32)
    low = fields(b[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    high = fields(b[:, :32], 1).reshape(-1, 16, 16)
    return (d[..., None] * ((low | high << 2).float() - 4)).flatten(1)


def _scales_k(s: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack 8 scales and 8 minima of 6 bits from 12 bytes.

    The first four of each are the low 6 bits of bytes 0..3 and 4..7; of
    the other four the low nibbles are in bytes 8..11, the high pairs in the top of bytes 0..3 and 4..7."""
    a, c, both = s[:, :4], s[:, 4:8], s[:, 8:]
    scales = torch.cat((a & 63, both & 15 | a >> 6 << 4), 1)
    return scales.float(), torch.cat((c & 63, both >> 4 | c >> 6 << 4), 1).float()


def q4_k(b: Tensor) -> Tensor:
    """Unpack Q4_K: d, m, 12 bytes of scales, 128 bytes of nibbles.  w = d s q - m t, s and t for 32 weights

    Each 32 bytes hold 64 weights: the low nibbles of all 32 first."""
    s, t = _scales_k(b[:, 4:16])
    q = fields(b[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32).float()
    return ((half(b[:, :2]) * s)[..., None] * q - (half(b[:, 2:4]) * t)[..., None]).flatten(1)


def q5_k(b: Tensor) -> Tensor:
    """Unpack Q5_K: d, m, 12 bytes of scales as Q4_K, 32 bytes of fifth bits, 128 bytes of nibbles as Q4_K.  w = d s q
    - m t"""
    s, t = _scales_k(b[:, 4:16])
    low = fields(b[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    q = (low | fields(b[:, 16:48], 1) << 4).float()
    return ((half(b[:, :2]) * s)[..., None] * q - (half(b[:, 2:4]) * t)[..., None]).flatten(1)


def q6_k(b: Tensor) -> Tensor:
    """Unpack Q6_K: 128 bytes of nibbles, 64 bytes of 2-bit fields, 16 int8 scales, d.  w = d s (q - 32), s for 16
    weights

    Each 64 bytes of nibbles hold 128 weights, low ones first; each 32 bytes of fields the top of the same 128."""
    low = fields(b[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    high = fields(b[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    q = ((low | high << 4).float() - 32).reshape(-1, 16, 16)
    d = half(b[:, 208:210]) * b[:, 192:208].view(torch.int8).float()
    return (d[..., None] * q).flatten(1)


def tq1_0(b: Tensor) -> Tensor:
    """Unpack TQ1_0: 48 bytes of five base-3 digits, 4 bytes of four, d.  w = d (digit - 1)

    A byte is a fraction of 256; the digits come out one by one as it is multiplied by 3. First digits of 32 bytes, then
    their second digits, and so on; then so of 16 bytes, then of 4."""

    def digits(q: Tensor, count: int) -> Tensor:
        powers = _constant(tuple(3**k for k in range(count)), torch.uint8, q.device)
        return (q[:, None, :] * powers[:, None]).flatten(1)  # uint8 wraps round, as it should

    q = torch.cat((digits(b[:, :32], 5), digits(b[:, 32:48], 5), digits(b[:, 48:52], 4)), 1)
    return half(b[:, 52:]) * ((q.short() * 3 >> 8).float() - 1)


def tq2_0(b: Tensor) -> Tensor:
    """Unpack TQ2_0: 64 bytes of 2-bit fields as Q2_K, d.  w = d (q - 1)"""
    return half(b[:, 64:]) * (fields(b[:, :64].reshape(-1, 2, 32), 2).flatten(1).float() - 1)


def mxfp4(b: Tensor) -> Tensor:
    """Unpack MXFP4: An 8-bit exponent e, 16 bytes of nibbles as Q4_0, each a 4-bit float.  w = 2^(e - 128) 2v"""
    e = b[:, :1].int()
    d = torch.where(e < 2, 0x00200000 << e.clamp(max=1), (e - 1) << 23).view(torch.float32)
    return d * _table(E2M1, fields(b[:, 1:], 4).flatten(1))


def nvfp4(b: Tensor) -> Tensor:
    """Unpack NVFP4: Four 8-bit float scales (4 bits of exponent, 3 of mantissa), for 16 weights each: 8 bytes, low
    nibbles first."""
    s = b[:, :4]
    exponent, mantissa = s >> 3 & 15, (s & 7).float()
    power = (exponent.int() + 120 << 23).view(torch.float32)  # 2^(exponent - 7), exact on every device
    scale = torch.where(exponent == 0, mantissa * 2**-9, (1 + mantissa / 8) * power)
    scale = torch.where((s == 0) | (s == 127), 0, scale * 0.5)
    return (scale[..., None] * _table(E2M1, fields(b[:, 4:].reshape(-1, 4, 8), 4).flatten(2))).flatten(1)


def iq4_nl(b: Tensor) -> Tensor:
    """Unpack IQ4_NL: d, 16 bytes of nibbles as Q4_0, each an index into 16 values.  w = d v"""
    return half(b[:, :2]) * _table(NL4, fields(b[:, 2:], 4).flatten(1))


def iq4_xs(b: Tensor) -> Tensor:
    """Unpack IQ4_XS: d, 2 bytes of high pairs and 4 bytes of low nibbles of 8 scales, 8 times 16 bytes as IQ4_NL.  w =
    d (s - 32) v"""
    s = fields(b[:, 4:8, None], 4).flatten(1) | fields(b[:, 2:4, None], 2).flatten(1) << 4
    d = half(b[:, :2]) * (s.float() - 32)
    return (d[..., None] * _table(NL4, fields(b[:, 8:].reshape(-1, 8, 16), 4).flatten(2))).flatten(1)


BLOCKS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "TQ1_0": tq1_0,
    "TQ2_0": tq2_0,
    "MXFP4": mxfp4,
    "NVFP4": nvfp4,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
    "IQ2_XXS": grids.iq2_xxs,
    "IQ2_XS": grids.iq2_xs,
    "IQ2_S": grids.iq2_s,
    "IQ3_XXS": grids.iq3_xxs,
    "IQ3_S": grids.iq3_s,
    "IQ1_S": grids.iq1_s,
    "IQ1_M": grids.iq1_m,
}
