"""List the tensor types: the number of weights in a block, and the bytes that hold it.

Source: ggml.h and ggml-common.h of llama.cpp b10605. Q8_1 and Q8_K are left out: they are intermediate types, which no
file stores.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockType:
    """A ggml tensor type."""

    name: str
    id: int
    weights: int
    bytes: int


# fmt: off
TYPES = {name: BlockType(name, *row) for name, row in {
    # name: id, weights in a block, bytes of a block
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "F64": (28, 1, 8),
    "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4), "I64": (27, 1, 8),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74), "IQ2_S": (22, 256, 82),
    "IQ3_XXS": (18, 256, 98), "IQ3_S": (21, 256, 110),
    "IQ1_S": (19, 256, 50), "IQ1_M": (29, 256, 56), "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136),
    "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36),
}.items()}
# fmt: on
BY_ID = {block.id: block for block in TYPES.values()}
