"""Store a quantised matrix as planes: its weights, their high bits and their scales in one array each.

A block of a GGUF file holds all three side by side, in 18 to 210 bytes, so that a thread that reads weights cannot
read 16 aligned bytes at a time. In planes it can, and no bit is lost: `unpack` gives what
`llava_ref.ops.torch_quants` gives, bit for bit (but for which NaN a NaN is).

N rows, K columns of the matrix; Kp is K padded to a multiple of PAD with zeros; G = Kp / 32 groups of 32 weights.
A group has 8 quads: quad t is weights 4t..4t+3, a byte each, the first weight in the lowest byte of an int32.
Block layouts: ggml-common.h and ggml-quants.c of llama.cpp b10605.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llava_ref.gguf.types import TYPES

PAD = 1024
"""Columns are padded to a multiple of this, so that a matrix-vector product needs no mask and rows stay aligned."""
VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The 16 values of IQ4_NL and IQ4_XS: kvalues_iq4nl of ggml-common.h."""
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Weights converted at a time, by the type of the device; what is in between takes some 10 bytes a weight."""

Scale = Literal["f16", "f16x2", "k", "k16", "k16m", "kx"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a type's weights lie in planes, and where they are in a block of the file.

    w = scale * (q - zero) - minimum, q the weight's bits in `quants` and above them its bits in `high`.

    `scale` says how a group's scales are stored; d, m and dmin are float16 bit patterns, s and t small integers:
    "f16"    scales int16 = d                                                          w = d (q - zero)
    "f16x2"  scales int32 = d | m << 16                                                w = d q + m
    "k"      scales int16 = s | t << 8;  supers int32 = d | dmin << 16                 w = (d s) q - (dmin t)
    "k16"    scales int16 = s0 | s1 << 8, signed, for 16 weights each;  supers int16 = d    w = (d s) (q - zero)
    "k16m"   scales int16, a byte s | t << 4 for 16 weights;  supers int32 = d | dmin << 16  w = (d s) q - (dmin t)
    "kx"     scales int8 = s;  supers int16 = d                                        w = (d s) (q - zero)
    Supers are for 8 groups.
    """

    bits: int
    """Bits of a weight in `quants`: 8, 4 or 2."""
    high: int
    """Bits of a weight in `high`: 0, 1 or 2."""
    zero: int
    """The q that stands for 0; 0 too where the bytes are signed (Q8_0) or where q is looked up in VALUES."""
    table: bool
    """Whether q is an index into VALUES."""
    scale: Scale
    d: int
    """Where in a block the float16 scale begins; m or dmin follows it."""
    low_at: tuple[int, int]
    """Where in a block the low bits begin, and in runs of how many bytes they are: see `_fields`."""
    high_at: tuple[int, int] = (0, 1)
    """The same for the high bits."""

    @property
    def run(self) -> int:
        """Bytes of a run in `quants`: 4, a quad; 1 for table values, whose nibbles stay side by side, weight after
        weight, since the instruction that looks them up (prmt) selects by such nibbles."""
        return 1 if self.table else 4


# fmt: off
LAYOUTS = {
    #                bits high zero table scale    d    low_at     high_at
    "Q4_0":   Layout(4,   0,   8, False, "f16",    0,   (2, 16)),
    "Q4_1":   Layout(4,   0,   0, False, "f16x2",  0,   (4, 16)),
    "Q5_0":   Layout(4,   1,  16, False, "f16",    0,   (6, 16),  (2, 1)),
    "Q5_1":   Layout(4,   1,   0, False, "f16x2",  0,   (8, 16),  (4, 1)),
    "Q8_0":   Layout(8,   0,   0, False, "f16",    0,   (2, 32)),
    "Q2_K":   Layout(2,   0,   0, False, "k16m",  80,  (16, 32)),
    "Q3_K":   Layout(2,   1,   4, False, "k16",  108,  (32, 32),  (0, 32)),
    "Q4_K":   Layout(4,   0,   0, False, "k",      0,  (16, 32)),
    "Q5_K":   Layout(4,   1,   0, False, "k",      0,  (48, 32), (16, 32)),
    "Q6_K":   Layout(4,   2,  32, False, "k16",  208,   (0, 64), (128, 32)),
    "IQ4_NL": Layout(4,   0,   0, True,  "f16",    0,   (2, 16)),
    "IQ4_XS": Layout(4,   0,   0, True,  "kx",     0,   (8, 16)),
}
# fmt: on
SCALES = {"f16": torch.int16, "f16x2": torch.int32, "k": torch.int16, "k16": torch.int16, "k16m": torch.int16}
SCALES |= {"kx": torch.int8}
SUPERS = {"k": torch.int32, "k16": torch.int16, "k16m": torch.int32, "kx": torch.int16}


@dataclass(frozen=True, slots=True)
class Planes:
    """A quantised matrix (N, K) as planes."""

    type: str
    shape: tuple[int, int]
    quants: Tensor  # int32 (N, G * bits)
    high: Tensor | None  # int32 (N, G * high)
    scales: Tensor  # (N, G)
    supers: Tensor | None  # (N, G / 8)

    def part(self, first: int, end: int) -> "Planes":
        """Return rows first..end-1, as a view of the same memory."""
        planes = [plane if plane is None else plane[first:end] for plane in self._all()]
        return Planes(self.type, (len(self.quants[first:end]), self.shape[1]), *planes)  # type: ignore[arg-type]

    @property
    def n_bytes(self) -> int:
        return sum(plane.nbytes for plane in self._all() if plane is not None)

    def _all(self) -> tuple[Tensor | None, ...]:
        return self.quants, self.high, self.scales, self.supers

    def _chunks(self) -> Iterator[tuple[slice, "Planes"]]:
        step = max(1, CHUNK[self.quants.device.type] // self.shape[1])
        for first in range(0, self.shape[0], step):
            yield slice(first, first + step), self.part(first, first + step)


def pack(blocks: Tensor, kind: str, shape: tuple[int, int]) -> Planes:
    """Convert the blocks of a file's matrix to planes, on their own device.  (N, bytes of a row) uint8

    Raises ValueError for a type without a layout, and for blocks that do not hold `shape` weights."""
    if kind not in LAYOUTS:
        raise ValueError(f"kind: {kind} has no planes, expected one of {', '.join(LAYOUTS)}")
    (N, K), weights, size = shape, TYPES[kind].weights, TYPES[kind].bytes
    if K % weights or blocks.shape != (N, K // weights * size) or blocks.dtype != torch.uint8:
        raise ValueError(f"blocks: {blocks.dtype} {tuple(blocks.shape)} cannot hold {kind} of {N} x {K}")
    planes = _zeros(kind, shape, blocks.device)
    for rows, part in planes._chunks():
        _pack(blocks[rows].reshape(-1, size), part)
    return planes


def unpack(w: Planes, dtype: torch.dtype = torch.float32) -> Tensor:
    """Dequantise in float32, and round to `dtype`.  -> (N, K)"""
    out = torch.empty(w.shape, dtype=dtype, device=w.quants.device)
    for rows, part in w._chunks():
        out[rows] = _weights(part)[:, : w.shape[1]]
    return out


def beside(several: Sequence[Planes]) -> Planes:
    """Copy matrices of one type and one K into a single one, rows after rows; `part` gives each back.

    Raises ValueError for matrices of different types or K."""
    kinds = {(w.type, w.shape[1]) for w in several}
    if len(kinds) != 1:
        raise ValueError(f"several: expected matrices of one type and width, not {sorted(kinds)}")
    ((kind, K),) = kinds
    planes = [None if some[0] is None else torch.cat(some) for some in zip(*(w._all() for w in several), strict=True)]
    return Planes(kind, (sum(w.shape[0] for w in several), K), *planes)  # type: ignore[arg-type]


def _zeros(kind: str, shape: tuple[int, int], device: torch.device) -> Planes:
    (N, K), layout = shape, LAYOUTS[kind]
    groups = -(-K // PAD) * PAD // 32

    def plane(width: int, dtype: torch.dtype | None) -> Tensor:
        return torch.zeros((N, width), dtype=dtype, device=device)

    high = plane(groups * layout.high, torch.int32) if layout.high else None
    supers = plane(groups // 8, SUPERS[layout.scale]) if layout.scale in SUPERS else None
    return Planes(
        kind, shape, plane(groups * layout.bits, torch.int32), high, plane(groups, SCALES[layout.scale]), supers
    )


def _pack(b: Tensor, out: Planes) -> None:
    """Fill planes whose rows are the blocks b, (n, bytes of a block)."""
    layout, weights = LAYOUTS[out.type], TYPES[out.type].weights

    def fill(plane: Tensor | None, data: Tensor) -> None:
        assert plane is not None
        words = data.contiguous().view(-1).view(plane.dtype).view(len(plane), -1)
        plane[:, : words.shape[1]] = words

    def merged(at: tuple[int, int], width: int, run: int) -> Tensor:
        first, file_run = at
        return _merged(_fields(b[:, first : first + weights * width // 8], width, file_run), width, run)

    fill(out.quants, merged(layout.low_at, layout.bits, layout.run))
    if layout.high:
        fill(out.high, merged(layout.high_at, layout.high, 4))
    fill(out.scales, _scale_bytes(b, out.type))
    if layout.scale in SUPERS:
        fill(out.supers, b[:, layout.d : layout.d + SUPERS[layout.scale].itemsize])


def _fields(b: Tensor, width: int, run: int) -> Tensor:
    """Split bytes into fields of `width` bits, in runs: the lowest fields of `run` bytes, then their next ones.

    (n, m) uint8 -> (n, 8 / width * m) uint8"""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=b.device)[:, None]
    return (b.reshape(len(b), -1, 1, run) >> shifts & (1 << width) - 1).flatten(1)


def _merged(codes: Tensor, width: int, run: int) -> Tensor:
    """Put fields into bytes: what `_fields` takes apart.  (n, 8 / width * m) uint8 -> (n, m) uint8"""
    fields = codes.reshape(len(codes), -1, 8 // width, run)
    merged = fields[:, :, 0].clone()
    for i in range(1, 8 // width):
        merged |= fields[:, :, i] << i * width
    return merged.flatten(1)


def _scale_bytes(b: Tensor, kind: str) -> Tensor:
    """Return the bytes of the plane `scales` for blocks b; small scales are unpacked from their 4 + 2 bits."""
    d = LAYOUTS[kind].d
    match kind:
        case "Q2_K":
            return b[:, :16]
        case "Q3_K":
            return (_fields(b[:, 96:104], 4, 8) | _fields(b[:, 104:108], 2, 4) << 4) - 32
        case "Q4_K" | "Q5_K":
            a, c, both = b[:, 4:8], b[:, 8:12], b[:, 12:16]
            s = torch.cat((a & 63, both & 15 | a >> 6 << 4), 1)
            t = torch.cat((c & 63, both >> 4 | c >> 6 << 4), 1)
            return torch.stack((s, t), -1)
        case "Q6_K":
            return b[:, 192:208]
        case "IQ4_XS":
            return (_fields(b[:, 4:8], 4, 1) | _fields(b[:, 2:4], 2, 1) << 4) - 32
    return b[:, d : d + SCALES[LAYOUTS[kind].scale].itemsize]


def _weights(w: Planes) -> Tensor:
    """Dequantise rows with their padding.  -> (N, Kp) float32"""
    layout, N = LAYOUTS[w.type], len(w.quants)
    q = _fields(w.quants.view(torch.uint8), layout.bits, layout.run)
    if w.high is not None:
        q |= _fields(w.high.view(torch.uint8), layout.high, 4) << layout.bits
    values = q.view(torch.int8).float() if layout.bits == 8 else q.float() - layout.zero
    if layout.table:
        values = torch.tensor(VALUES, dtype=torch.float32, device=q.device)[q.int()]
    scale, offset = _scales(w)
    values = values.view(N, scale.shape[1], -1) * scale[..., None]
    if offset is not None:
        values = values + offset[..., None] if layout.scale == "f16x2" else values - offset[..., None]
    return values.flatten(1)


def _scales(w: Planes) -> tuple[Tensor, Tensor | None]:
    """Return the scales, and what is then added ("f16x2") or taken away.  -> (N, G), or (N, 2 G), of 16 weights each"""
    scale, octets = LAYOUTS[w.type].scale, w.scales.view(torch.uint8)
    halves = (w.scales if w.supers is None else w.supers).view(torch.float16).float()
    if scale == "f16":
        return halves, None
    if scale == "f16x2":
        return halves[:, 0::2], halves[:, 1::2]
    times = 8 if scale in ("k", "kx") else 16
    if scale in ("kx", "k16"):
        return halves.repeat_interleave(times, 1) * octets.view(torch.int8).float(), None
    d, least = halves[:, 0::2].repeat_interleave(times, 1), halves[:, 1::2].repeat_interleave(times, 1)
    s, t = (octets[:, 0::2], octets[:, 1::2]) if scale == "k" else (octets & 15, octets >> 4)
    return d * s.float(), least * t.float()
