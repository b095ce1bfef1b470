"""Hand out tensors of a file by name, once each, with their shape checked; one that nobody takes is an error.

Nothing is converted here: a backend's `matrix` keeps the raw blocks until they are used. Shapes are in torch order.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile, TensorView
from ..ops.numpy_quants import PLAIN, dequantize
from ..ops.protocol import Array, Linear, Matrix, Norm, Ops

INTEGERS = ("I8", "I16", "I32", "I64")


class Weights:
    """The tensors of `file`. Raises GGUFError for a missing one, a wrong shape, one that nobody took."""

    def __init__(self, file: GGUFFile, ops: Ops) -> None:
        self._file, self._ops = file, ops
        self._left = dict(file.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the file's shape of `name`, which must be there and hold numbers that can be weights."""
        if name not in self._file.tensors:
            raise GGUFError(self._file.path, name, "missing tensor")
        view = self._file.tensors[name]
        if view.type in INTEGERS:
            raise GGUFError(self._file.path, name, f"is of the integer type {view.type}, expected floats or blocks")
        return view.shape

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Return rows and columns of `name`, which may have further axes of 1."""
        found = self.shape(name)
        rows = found if len(found) == 2 else without_ones(found)
        if len(rows) != 2:
            raise GGUFError(self._file.path, name, f"has shape {list(found)}, expected a matrix")
        return rows[0], rows[1]

    def has(self, name: str) -> bool:
        """Say whether `name` is in the file and has not been taken."""
        return name in self._left

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        """Take a matrix (N, K), or a patch kernel (N, 3, P, P)."""
        return self._ops.matrix(self._take(name, shape))

    def transposed(self, name: str, shape: tuple[int, int]) -> Matrix:
        """Take a matrix that is stored (K, N) and multiplied as (N, K). Blocks run along K, so only plain types can
        be."""
        view = self._take(name, shape)
        if view.type not in PLAIN and view.type != "BF16":
            raise GGUFError(self._file.path, name, f"is of type {view.type}, and only plain types can be transposed")
        data = np.frombuffer(view.data, PLAIN.get(view.type, np.uint16)).reshape(shape).T
        turned = TensorView(name, view.type, shape[::-1], memoryview(bytearray(np.ascontiguousarray(data).tobytes())))
        return self._ops.matrix(turned)

    def vector(self, name: str, shape: tuple[int, ...]) -> Array:
        """Take a small tensor as an array: a gain, a class token, a table of positions."""
        return self._ops.vector(self._take(name, shape))

    def linear(self, name: str, shape: tuple[int, ...]) -> Linear:
        """Take `name`.weight of `shape`, and `name`.bias, as long as its first axis, if it is there."""
        return Linear(self.matrix(f"{name}.weight", shape), self._bias(name, shape[0]))

    def norm(self, name: str, width: int) -> Norm:
        """Take `name`.weight, and `name`.bias if it is there, (width,) each."""
        return Norm(self.vector(f"{name}.weight", (width,)), self._bias(name, width))

    def divisors(self, name: str, count: int) -> np.ndarray | None:
        """Take a small vector of positive numbers, (count,) float32, or return None where the file has none."""
        if not self.has(name):
            return None
        view = self._take(name, (count,))
        values = dequantize(view).reshape(count)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise GGUFError(self._file.path, name, "holds a number that is not positive and finite")
        return values

    def finish(self, unused: Sequence[str] = ()) -> None:
        """Raise GGUFError if a tensor was never asked for, except names that start with one of `unused`."""
        for name in self._left:
            if not name.startswith(tuple(unused)):
                raise GGUFError(self._file.path, name, "this model has no use for the tensor")

    def _bias(self, name: str, width: int) -> Array | None:
        return self.vector(f"{name}.bias", (width,)) if self.has(f"{name}.bias") else None

    def _take(self, name: str, shape: tuple[int, ...]) -> TensorView:
        """Return the tensor `name`, which must be there and have `shape`; axes of 1 more or less are nothing."""
        found = self.shape(name)
        if without_ones(found) != without_ones(shape):
            raise GGUFError(self._file.path, name, f"has shape {list(found)}, expected {list(shape)}")
        return replace(self._left.pop(name), shape=shape)


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape less its axes of 1, which do not change where a number stands in the data."""
    return tuple(n for n in shape if n != 1)
