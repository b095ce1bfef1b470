"""Say how the blocks of a type become codes and scales for products with a few rows: one module a type.

A type is added by one file, here and in `decode`, and its name in `typed.QUANTISED`. The file has `BLOCK`, whose
functions Python runs once, while a kernel is made (traced.py): a `SmallBlock` of 32 weights (q4_0.py), a `BigBlock` of
256 (q4_k.py), or `Dense` numbers (f16.py). Codes come 64 at a time: bytes without sign, in order; or, where they have a
sign, two vectors of int16, the 32 at even places and the 32 at odd ones. That is what becomes of bytes that are read as
words, and lane i of both has weights 2 i and 2 i + 1, which share a scale: it is spread once for both.
"""
