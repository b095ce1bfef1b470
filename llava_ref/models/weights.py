"""Tensors of a file by name, each handed out once with its shape checked; what is left over is an error.

Nothing is converted here: a backend's `weight` keeps the raw blocks until they are used. Shapes are in torch order.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..ops.numpy_quants import dequantize
from ..ops.protocol import Ops, Weight

INTEGERS = ("I8", "I16", "I32", "I64")


@dataclass(frozen=True, slots=True)
class Affine:
    """A matrix or a norm's gain, with its bias where the file has one."""

    weight: Weight
    bias: Weight | None


class Weights:
    """Hands out each tensor of `file` once. GGUFError names a missing one, a wrong shape, one that nobody took."""

    def __init__(self, file: GGUFFile, ops: Ops) -> None:
        self._file, self._ops = file, ops
        self._left = dict(file.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape the file has for `name`, which must be there and hold numbers that can be weights."""
        if name not in self._file.tensors:
            raise GGUFError(self._file.path, name, "missing tensor")
        view = self._file.tensors[name]
        if view.type in INTEGERS:
            raise GGUFError(self._file.path, name, f"is of the integer type {view.type}, expected floats or blocks")
        return view.shape

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of `name`, which may have further axes of 1."""
        found = self.shape(name)
        rows = found if len(found) == 2 else without_ones(found)
        if len(rows) != 2:
            raise GGUFError(self._file.path, name, f"has shape {list(found)}, expected a matrix")
        return rows[0], rows[1]

    def take(self, name: str, shape: tuple[int, ...]) -> Weight:
        """The tensor `name`, which must be there and have `shape`; axes of 1 more or less are nothing."""
        found = self.shape(name)
        if without_ones(found) != without_ones(shape):
            raise GGUFError(self._file.path, name, f"has shape {list(found)}, expected {list(shape)}")
        return self._ops.weight(replace(self._left.pop(name), shape=shape))

    def maybe(self, name: str, shape: tuple[int, ...]) -> Weight | None:
        """As `take`, or None where the file has no such tensor."""
        return self.take(name, shape) if name in self._left else None

    def affine(self, name: str, shape: tuple[int, ...]) -> Affine:
        """`name`.weight of `shape`, and `name`.bias, as long as its first axis, if it is there."""
        return Affine(self.take(f"{name}.weight", shape), self.maybe(f"{name}.bias", shape[:1]))

    def maybe_affine(self, name: str, shape: tuple[int, ...]) -> Affine | None:
        return self.affine(name, shape) if f"{name}.weight" in self._left else None

    def divisors(self, name: str, count: int) -> np.ndarray | None:
        """A small vector of positive numbers read at once, (count,) float32, or None where the file has none."""
        if name not in self._left:
            return None
        self.take(name, (count,))
        values = dequantize(self._file.tensors[name]).reshape(count)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise GGUFError(self._file.path, name, "holds a number that is not positive and finite")
        return values

    def finish(self, unused: tuple[str, ...] = ()) -> None:
        """Fails if a tensor was never asked for, except names starting with one of `unused`."""
        for name in self._left:
            if not name.startswith(unused):
                raise GGUFError(self._file.path, name, "this model has no use for the tensor")


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape less its axes of 1, which do not change where a number stands in the data."""
    return tuple(n for n in shape if n != 1)
