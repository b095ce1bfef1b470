"""Compare each stored tensor with its sibling's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..errors import NumericsError
from ..gguf.file import TensorView
from ..ops.numpy_quants import dequantize
from .siblings import FilePair, same_bytes

CHUNK = 1 << 22  # weights of either file in memory at a time


@dataclass(frozen=True, slots=True)
class TensorError:
    """Holds the error that a tensor's type causes in its weights."""

    name: str
    type: str
    reference_type: str
    shape: tuple[int, ...]
    n_bytes: int
    reference_bytes: int
    rel_rms: float
    """||w - r|| / ||r||, w its weights and r the reference's; infinite where r is all zeros and w is not."""
    max_abs: float

    @property
    def bits(self) -> float:
        """Return the stored bits per weight."""
        return 8 * self.n_bytes / math.prod(self.shape)


def compare(quantised: FilePair, reference: FilePair) -> list[TensorError]:
    """Compare every tensor of the pairs, in the order of the files.

    Raises NumericsError naming a tensor that holds NaN or infinity."""
    theirs = reference.tensors()
    return [_error(view, theirs[name]) for name, view in quantised.tensors().items()]


def _error(view: TensorView, other: TensorView) -> TensorError:
    off = size = largest = 0.0
    if not same_bytes(view, other):
        for w, r in zip(_chunks(view), _chunks(other), strict=True):
            d = w.astype(np.float64) - r
            off, size = off + float(np.vdot(d, d)), size + float(np.vdot(r, r.astype(np.float64)))
            largest = max(largest, float(np.abs(d).max()))
        if not math.isfinite(off + size):
            raise NumericsError("weights", view.name, "holds NaN or infinity in one of the two files")
    rel = math.sqrt(off / size) if size else (math.inf if off else 0.0)
    sizes = len(view.data), len(other.data)
    return TensorError(view.name, view.type, other.type, view.shape, *sizes, rel, largest)


def _chunks(view: TensorView) -> Iterator[np.ndarray]:
    """Yield whole rows, float32, about CHUNK weights at a time."""
    width = view.shape[-1]
    rows = math.prod(view.shape[:-1])
    stride, step = len(view.data) // rows, max(1, CHUNK // width)
    for at in range(0, rows, step):
        count = min(step, rows - at)
        yield dequantize(replace(view, shape=(count, width), data=view.data[at * stride : (at + count) * stride]))
