"""Turn a tile of planes into quads and scales: what products and rows read of every type, and the 8-bit product.

A quad is four weights as four bytes of an int32 (planes.py). All of it stays in a thread's registers. Instructions for
the 8 quads of a group: 12 of 4-bit types, 28 with fifth bits (Q5_0), 26 with two more bits (Q6_K), 14 of Q2_K, 28 of
Q3_K, none of Q8_0, 44 of the table of IQ4_NL and IQ4_XS, which looks up 4 weights by two `prmt`.

Tiles have any shape. `words` and `high` are tuples of int32 tiles, word i of each group in element i. BITS, HIGH,
TABLE and SCALE are the fields of planes.Layout. REAL is False in the interpreter, which has no inline PTX.
"""

import triton
import triton.language as tl

from ..planes import VALUES


def _bytes(values: tuple[int, ...]) -> tl.constexpr:
    return tl.constexpr(int.from_bytes(bytes(values), "little"))


NEGATIVE = _bytes(tuple(-v for v in VALUES[:4]))  # magnitudes of the first 8 values, four bytes a word
NEGATIVE_4 = _bytes(tuple(-v for v in VALUES[4:8]))
POSITIVE = _bytes(VALUES[8:12])
POSITIVE_4 = _bytes(VALUES[12:])


@triton.jit
def dp4a(a, b, c, REAL: tl.constexpr):
    """Add to c the four products of the signed bytes of a and b."""
    if REAL:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        for i in tl.static_range(4):
            c += ((a << (24 - 8 * i)) >> 24) * ((b << (24 - 8 * i)) >> 24)
        return c


@triton.jit
def prmt(LOW: tl.constexpr, HIGH: tl.constexpr, selector, REAL: tl.constexpr):
    """Select four of eight bytes, LOW's and HIGH's, by the four nibbles in the lower half of `selector`.

    A nibble of 8 and more gives the sign of byte (nibble - 8), as 0 or 0xFF."""
    low, high = tl.full(selector.shape, LOW, tl.int32), tl.full(selector.shape, HIGH, tl.int32)
    if REAL:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        out = tl.zeros(selector.shape, tl.int32)
        for i in tl.static_range(4):
            nibble = selector >> (4 * i)
            byte = tl.where((nibble & 4) != 0, high, low) >> (8 * (nibble & 3)) & 0xFF
            byte = tl.where((nibble & 8) != 0, (byte >> 7) * 0xFF, byte)
            out |= byte << (8 * i)
        return out


@triton.jit
def _looked_up(index, REAL: tl.constexpr):
    """Look up the four nibbles in the lower half of `index` in planes.VALUES.

    Its first 8 values are negative, the others positive. A nibble on the other side selects the sign of a positive
    byte, 0, so one of the two is 0 and no byte of the difference borrows from the next."""
    positive = prmt(POSITIVE, POSITIVE_4, index ^ 0x8888, REAL)
    negative = prmt(NEGATIVE, NEGATIVE_4, index, REAL)
    return (positive - negative + -0x7F7F7F80) ^ -0x7F7F7F80  # 0x80 in each byte, as an int32


@triton.jit
def _shifted(x, left: tl.constexpr):
    if left < 0:
        return x >> -left
    else:
        return x << left


@triton.jit
def _high_bits(high, t: tl.constexpr, BITS: tl.constexpr, HIGH: tl.constexpr):
    """Return the bits of quad t in `high`, moved up to stand above its BITS lower ones."""
    if HIGH == 1:
        return _shifted(high[0], BITS - t) & (0x01010101 << BITS)
    else:
        return _shifted(high[t // 4], BITS - 2 * (t % 4)) & (0x03030303 << BITS)


@triton.jit
def quads(words, high, BITS: tl.constexpr, HIGH: tl.constexpr, TABLE: tl.constexpr, REAL: tl.constexpr):
    """Return a group's quads, 8 tiles; with 8 bits as many as there are words, so that a part of a group will do."""
    FIELDS: tl.constexpr = 8 // BITS
    MASK: tl.constexpr = 0x01010101 * (2**BITS - 1)
    out = ()
    for t in tl.static_range(len(words) * FIELDS):
        word = words[t // FIELDS]
        if TABLE:
            quad = _looked_up(word >> (16 * (t % 2)), REAL)
        elif BITS == 8:
            quad = word
        else:
            quad = word >> (BITS * (t % FIELDS)) & MASK
        if HIGH > 0:
            quad |= _high_bits(high, t, BITS, HIGH)
        out = out + (quad,)
    return out


@triton.jit
def _half(bits):
    """Read the lower 16 bits as a float16."""
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def factors(scales, supers, SCALE: tl.constexpr):
    """Return s0, s1, m0, m1, float32: w = s (q - zero) - m; s0, m0 for weights 0..15 of a group, s1, m1 for the rest.

    Tiles of `scales` and `supers`, as they are stored (supers: each group's, or None). A product d s is exact."""
    if SCALE == "f16":
        s0 = _half(scales)
        s1, m0, m1 = s0, 0.0, 0.0
    elif SCALE == "f16x2":
        s0, m0 = _half(scales), -_half(scales >> 16)
        s1, m1 = s0, m0
    else:
        d, b = _half(supers), scales.to(tl.int32)
        if SCALE == "k":
            s0, m0 = d * (b & 0xFF).to(tl.float32), _half(supers >> 16) * (b >> 8).to(tl.float32)
            s1, m1 = s0, m0
        elif SCALE == "kx":
            s0 = d * b.to(tl.float32)
            s1, m0, m1 = s0, 0.0, 0.0
        elif SCALE == "k16":
            s0, s1 = d * (b << 24 >> 24).to(tl.float32), d * (b >> 8).to(tl.float32)
            m0, m1 = 0.0, 0.0
        else:
            least = _half(supers >> 16)
            s0, m0 = d * (b & 15).to(tl.float32), least * (b >> 4 & 15).to(tl.float32)
            s1, m1 = d * (b >> 8 & 15).to(tl.float32), least * (b >> 12 & 15).to(tl.float32)
    return s0, s1, m0, m1


@triton.jit
def four(w):
    """Take words (..., 4) apart into four tiles (...): registers are renamed, nothing moves."""
    even, odd = tl.split(w.reshape(w.shape[:-1] + (2, 2)))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d
