"""Raw blocks -> float32, in numpy, through the `gguf` package's own formulas (gguf/quants.py).

`backends/torch_quants.py` computes the same, bit for bit, in torch.
"""

from collections.abc import Sequence

import numpy as np

from .blocks import TYPES
from .gguf import TensorView

PLAIN: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
PLAIN |= {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}  # types numpy has itself


def dequantize(view: TensorView) -> np.ndarray:
    """float32 of `view.shape`. F32 is not copied: the array is the file's own pages, so treat it as read-only."""
    return _dequantize(np.frombuffer(view.data, np.uint8), view.type).reshape(view.shape)


def dequantize_rows(view: TensorView, rows: Sequence[int]) -> np.ndarray:
    """Only `rows` of a matrix (N, D), in the order given -> (len(rows), D) float32. Nothing else is read."""
    blocks = np.frombuffer(view.data, np.uint8).reshape(view.shape[0], -1)
    return _dequantize(blocks[np.asarray(rows, np.int64)].reshape(-1), view.type).reshape(-1, view.shape[1])


def _dequantize(data: np.ndarray, kind: str) -> np.ndarray:
    """Bytes -> flat float32. A scale of NaN or infinity gives what it gives, without numpy's warning."""
    with np.errstate(all="ignore"):
        if kind in PLAIN:
            return data.view(PLAIN[kind]).astype(np.float32, copy=False)
        import gguf  # here, not above: importing it takes longer than reading most headers

        return np.asarray(
            gguf.dequantize(data.reshape(-1, TYPES[kind].bytes), gguf.GGMLQuantizationType[kind])
        ).reshape(-1)
