"""Convert raw blocks to float32, in numpy, through the `gguf` package's own formulas (gguf/quants.py).

`torch_quants.py` computes the same, bit for bit, in torch.
"""

from collections.abc import Sequence

import numpy as np

from ..gguf.file import TensorView
from ..gguf.types import TYPES

PLAIN: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
PLAIN |= {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}  # types numpy has itself
CHUNK = 1 << 18  # weights converted at a time: few enough that what is in between stays in a core's cache


def dequantize(view: TensorView) -> np.ndarray:
    """Dequantise a tensor to float32 of `view.shape`. F32 is not copied: the array is the file's own pages, and is
    read-only."""
    array = _dequantize(np.frombuffer(view.data, np.uint8), view.type).reshape(view.shape)
    array.flags.writeable = view.type != "F32"
    return array


def dequantize_rows(view: TensorView, rows: Sequence[int]) -> np.ndarray:
    """Dequantise only `rows` of a matrix (N, D), in the order given, and read nothing else.  -> (len(rows), D)
    float32"""
    blocks = np.frombuffer(view.data, np.uint8).reshape(view.shape[0], -1)
    return _dequantize(blocks[np.asarray(rows, np.int64)].reshape(-1), view.type).reshape(-1, view.shape[1])


def _dequantize(data: np.ndarray, kind: str) -> np.ndarray:
    """Convert bytes to flat float32. A scale of NaN or infinity passes through, without numpy's warning."""
    with np.errstate(all="ignore"):
        if kind in PLAIN:
            return data.view(PLAIN[kind]).astype(np.float32, copy=False)
        if kind == "BF16":  # the upper half of a float32
            return np.left_shift(data.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
        return _dequantize_blocks(data.reshape(-1, TYPES[kind].bytes), kind)


def _dequantize_blocks(blocks: np.ndarray, kind: str) -> np.ndarray:
    import gguf  # here, not above: importing it takes longer than reading most headers

    weights = TYPES[kind].weights
    out, step = np.empty((len(blocks), weights), np.float32), CHUNK // weights
    for at in range(0, len(blocks), step):
        row = blocks[at : at + step].reshape(1, -1)  # the package works through many rows 16 at a time
        out[at : at + step] = gguf.dequantize(row, gguf.GGMLQuantizationType[kind]).reshape(-1, weights)
    return out.reshape(-1)
