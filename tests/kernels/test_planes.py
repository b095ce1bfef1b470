"""Planes hold what the blocks hold, bit for bit, and lie in memory as the kernels read them."""

import numpy as np
import pytest
import torch

from llava_ref.gguf.types import TYPES
from llava_ref.kernels import planes
from llava_ref.kernels.planes import LAYOUTS, PAD, VALUES, Planes, beside, pack, unpack
from llava_ref.ops.torch_quants import BLOCKS

SMALL = [kind for kind in LAYOUTS if TYPES[kind].weights == 32]
SHAPES = [(kind, N, K) for kind in LAYOUTS for N, K in [(1, 256), (7, 1280), (37, 2048)]]
SHAPES += [(kind, N, K) for kind in SMALL for N, K in [(5, 32), (3, 1056), (13, 96)]]


def blocks(kind: str, N: int, K: int) -> torch.Tensor:
    """Random bytes: every bit pattern of a scale may come up, subnormal, infinite and NaN ones too."""
    seed = np.random.default_rng([N, K, *kind.encode()])
    size = K // TYPES[kind].weights * TYPES[kind].bytes
    return torch.from_numpy(seed.integers(0, 256, (N, size), dtype=np.uint8))


def extreme(kind: str, N: int, K: int) -> torch.Tensor:
    """The same, each float16 replaced by one of zero, subnormal, largest, infinite and NaN, of all bits set."""
    b, d = blocks(kind, N, K).reshape(-1, TYPES[kind].bytes), LAYOUTS[kind].d
    ends = torch.tensor([0, -0.0, 6e-8, -3e-5, 65504, torch.inf, -torch.inf, 1], dtype=torch.float16)
    ends.view(torch.int16)[-1] = 0x7FFF
    for at in (d, d + 2) if LAYOUTS[kind].scale in ("f16x2", "k", "k16m") else (d,):
        b[:, at : at + 2] = ends[torch.arange(len(b)) * (at + 3) % len(ends)].view(torch.uint8).view(-1, 2)
    return b.reshape(N, -1)


def reference(b: torch.Tensor, kind: str) -> torch.Tensor:
    return BLOCKS[kind](b.reshape(-1, TYPES[kind].bytes)).reshape(len(b), -1)


def same_bits(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Whether all bits agree, the sign of a zero too. Any NaN equals any other: torch converts a float16 NaN to two
    different float32 ones by the length of the array."""
    same = got.view(torch.int32) == want.view(torch.int32)
    return got.shape == want.shape and bool((same | got.isnan() & want.isnan()).all())


def same_planes(a: Planes, b: Planes) -> bool:
    pairs = [(a.quants, b.quants), (a.high, b.high), (a.scales, b.scales), (a.supers, b.supers)]
    same = (x is y is None or x is not None and y is not None and torch.equal(x, y) for x, y in pairs)
    return (a.type, a.shape) == (b.type, b.shape) and all(same)


@pytest.mark.parametrize("kind, N, K", SHAPES)
@pytest.mark.parametrize("made", [blocks, extreme])
def test_unpack_gives_the_bits_of_the_blocks(kind, N, K, made):
    b = made(kind, N, K)
    assert same_bits(unpack(pack(b, kind, (N, K))), reference(b, kind))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_bit_of_a_block_is_kept(kind):
    """Flipping any bit changes the planes, or there was a bit that no weight depends on."""
    whole = blocks(kind, 1, TYPES[kind].weights)
    flipped = whole.repeat(8 * TYPES[kind].bytes, 1)
    flipped ^= (
        torch.eye(8 * TYPES[kind].bytes, dtype=torch.uint8)
        .reshape(len(flipped), -1, 8)
        .mul(1 << torch.arange(8, dtype=torch.uint8))
        .sum(-1, dtype=torch.uint8)
    )
    w = pack(torch.cat((whole, flipped)), kind, (1 + len(flipped), TYPES[kind].weights))
    bits = torch.cat([plane.view(torch.uint8) for plane in w._all() if plane is not None], 1)
    assert len(bits.unique(dim=0)) == len(bits)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_chunks_give_the_same_bits(kind, monkeypatch):
    b = blocks(kind, 11, 512)
    want = pack(b, kind, (11, 512))
    monkeypatch.setitem(planes.CHUNK, "cpu", 1100)
    got = pack(b, kind, (11, 512))
    assert same_planes(got, want)
    assert same_bits(unpack(got), reference(b, kind))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_quads_lie_where_kernels_read_them(kind):
    """Take the bytes of quads from the words by shifts and masks alone, as a kernel does."""
    layout, w = LAYOUTS[kind], pack(blocks(kind, 3, 512), kind, (3, 512))
    words = w.quants[:, : 16 * layout.bits].reshape(3, 16, layout.bits)
    quads = []
    for t in range(8):
        word, field = words[..., t * layout.bits // 8], t % (8 // layout.bits)
        if layout.table:  # four nibbles side by side
            nibbles = word >> 16 * field
            quad = sum((nibbles >> 4 * j & 15) << 8 * j for j in range(4))
        else:
            quad = word if layout.bits == 8 else word >> layout.bits * field & 0x01010101 * ((1 << layout.bits) - 1)
        if layout.high:
            word = w.high[:, : 16 * layout.high].reshape(3, 16, layout.high)[..., t * layout.high // 8]
            field = t % (8 // layout.high)
            quad |= (word >> layout.high * field & 0x01010101 * ((1 << layout.high) - 1)) << layout.bits
        quads.append(quad)
    got = torch.stack(quads, -1).contiguous().view(torch.int8).reshape(3, 512)
    q = got.float() - layout.zero if not layout.table else torch.tensor(VALUES).float()[got.int()]
    unit = pack_with_unit_scales(kind, blocks(kind, 3, 512))
    assert torch.equal(q, unit)


def pack_with_unit_scales(kind: str, b: torch.Tensor) -> torch.Tensor:
    """Return the integers that the scales multiply, by way of the reference: every scale 1, every minimum 0."""
    b = b.reshape(-1, TYPES[kind].bytes).clone()
    d, one = LAYOUTS[kind].d, torch.tensor([0, 0x3C], dtype=torch.uint8)  # float16 1.0
    b[:, d : d + 2] = one
    if LAYOUTS[kind].scale in ("f16x2", "k", "k16m"):
        b[:, d + 2 : d + 4] = 0
    first, end, unit = {
        "Q2_K": (0, 16, [1] * 16),
        "Q3_K": (96, 108, [0x11] * 8 + [0xAA] * 4),  # 0x21, less 32
        "Q4_K": (4, 16, [1] * 4 + [0] * 4 + [1] * 4),
        "Q5_K": (4, 16, [1] * 4 + [0] * 4 + [1] * 4),
        "Q6_K": (192, 208, [1] * 16),
        "IQ4_XS": (2, 8, [0xAA] * 2 + [0x11] * 4),
    }.get(kind, (0, 0, []))
    b[:, first:end] = torch.tensor(unit, dtype=torch.uint8)
    return BLOCKS[kind](b).reshape(3, 512)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_rows_are_aligned_and_padded_with_zeros(kind):
    w, K, scale = pack(blocks(kind, 5, 1280), kind, (5, 1280)), 1280, LAYOUTS[kind].scale
    layout, groups = LAYOUTS[kind], 2 * PAD // 32
    assert w.quants.shape == (5, groups * layout.bits) and w.scales.shape == (5, groups)
    assert w.scales.dtype == {"f16x2": torch.int32, "kx": torch.int8}.get(scale, torch.int16)
    assert w.high is None if layout.high == 0 else w.high.shape == (5, groups * layout.high)
    assert w.supers is None or w.supers.shape == (5, groups // 8)
    assert w.supers is None or w.supers.dtype == (torch.int32 if scale in ("k", "k16m") else torch.int16)
    for plane, width in [(w.quants, 16), (w.high, 16), (w.scales, 16), (w.supers, 8)]:
        if plane is not None:
            assert plane.is_contiguous() and plane.stride(0) * plane.itemsize % width == 0
            used = plane.shape[1] * K // (2 * PAD)
            assert not plane[:, used:].any() and plane[:, :used].any()


def test_bytes_of_a_weight():
    """The figures that predictions of a kernel's time begin with, in bits."""
    bits = {kind: 8 * pack(blocks(kind, 2, 1024), kind, (2, 1024)).n_bytes / 2048 for kind in LAYOUTS}
    assert bits == {
        "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "Q2_K": 2.625, "Q3_K": 3.5625,
        "Q4_K": 4.625, "Q5_K": 5.625, "Q6_K": 6.5625, "IQ4_NL": 4.5, "IQ4_XS": 4.3125,
    }  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_matrices_beside_one_another_come_apart_again(kind):
    several = [pack(blocks(kind, N, 256), kind, (N, 256)) for N in (3, 1, 5)]
    joined = beside(several)
    assert joined.shape == (9, 256)
    for (first, end), w in zip([(0, 3), (3, 4), (4, 9)], several, strict=True):
        part = joined.part(first, end)
        assert same_planes(part, w)
        assert part.quants.data_ptr() == joined.quants[first].data_ptr()  # no copy


def test_a_part_ends_with_the_matrix():
    assert pack(blocks("Q4_0", 5, 32), "Q4_0", (5, 32)).part(3, 9).shape == (2, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_unpack_rounds_once(dtype):
    b = blocks("Q6_K", 3, 512)
    b.reshape(-1, 210)[:, 209] &= 0x3F  # finite scales below 2
    assert torch.equal(unpack(pack(b, "Q6_K", (3, 512)), dtype), reference(b, "Q6_K").to(dtype))


def test_what_cannot_be_packed_is_refused():
    b = blocks("Q4_0", 5, 64)
    with pytest.raises(ValueError, match="kind: IQ2_XS has no planes, expected one of Q4_0, "):
        pack(b, "IQ2_XS", (5, 64))
    with pytest.raises(ValueError, match=r"blocks: torch.uint8 \(5, 36\) cannot hold Q4_0 of 5 x 96"):
        pack(b, "Q4_0", (5, 96))
    with pytest.raises(ValueError, match="blocks: torch.int8"):
        pack(b.view(torch.int8), "Q4_0", (5, 64))
    with pytest.raises(ValueError, match="blocks: .* cannot hold Q4_K of 5 x 64"):
        pack(b, "Q4_K", (5, 64))
    with pytest.raises(ValueError, match="several: expected matrices of one type and width"):
        beside([pack(b, "Q4_0", (5, 64)), pack(blocks("Q4_0", 5, 32), "Q4_0", (5, 32))])
