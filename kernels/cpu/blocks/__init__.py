"""Unpack the blocks of a type for products with a few rows: one module a type.

A type is added by one file and its name in `matvec.SUPPORTED`. The file has `unpack(address)` for 256 weights, and a
kernel `matvec` that hands it to a loop of sums.py; Python runs all of it once, while the kernel is made (traced.py):

    @traced
    def matvec(args, first, end):
        whole_scales(unpack, minima, BYTES, args, first, end)

`unpack` gives 8 vectors of 32 int16: of each 64 weights the 32 at even places, then the 32 at odd ones. That is what
becomes of 64 bytes in order that are read as words (`sums.words` for codes with a sign; `q & 255` and the upper byte
for others), and lane i of both has weights 2 i and 2 i + 1, which share a scale. So scales are spread once for both.

`whole_scales`, blocks of 256 (q4_k.py): codes times their scales, within 2^12 so that 256 products of codes of x stay
within 32 bits, and one float32 for the block. `float_scales`, blocks of 32 (q8_0.py): 8 blocks, codes alone, and 4
vectors of float32: lane i of vector j is the scale of weights 64 j + 4 i to 64 j + 4 i + 3. `minima(address)` gives
what is to be added for each 16 weights, times the sum of x over them: 16 float32; None where nothing is.
"""
