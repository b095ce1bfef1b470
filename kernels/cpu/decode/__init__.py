"""Say where a type's weights lie in its block, one file a type: `block(at, put, out)`.

`at` is the block's address. It calls `put(out, index, q, zero, f, m)` for each 16 weights from weight `index` of the
block on: the weights are f * (q - zero) - m, q 16 codes of 8 bits without sign, f and m float32 numbers. So the order
of the arithmetic is that of `ops.numpy_quants`, and the weights have its bits, where every step is rounded by itself.
`put` and `out` are the caller's: what becomes of codes and factors. torch_quants.py draws each block.
"""
