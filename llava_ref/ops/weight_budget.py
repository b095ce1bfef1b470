"""Weights in float32: kept after the first use while a budget lasts, dequantised again at every use after that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..gguf.file import TensorView

A = TypeVar("A")


@dataclass(slots=True)
class Budget:
    """Bytes of float32 weights that may still be kept."""

    left: int

    def take(self, n_bytes: int) -> bool:
        """Whether `n_bytes` more fit; if so they are taken."""
        if n_bytes > self.left:
            return False
        self.left -= n_bytes
        return True


class CachedWeight(Generic[A]):
    """A parameter of a model file. `array()` is float32 of `shape`; `dequantize` is the backend's own."""

    def __init__(self, view: TensorView, dequantize: Callable[[TensorView], A], budget: Budget) -> None:
        self.view, self.shape = view, view.shape
        self._dequantize, self._budget = dequantize, budget
        self._kept: A | None = None

    def array(self) -> A:
        if self._kept is not None:
            return self._kept
        array = self._dequantize(self.view)
        if len(self.shape) == 1 or self._budget.take(float32_bytes(self.view)):
            self._kept = array
        return array


def float32_bytes(view: TensorView) -> int:
    """Memory that keeping this tensor in float32 takes: none for F32, which is read in place."""
    if view.type == "F32":
        return 0
    n = 4
    for axis in view.shape:
        n *= axis
    return n
