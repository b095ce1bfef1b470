"""Keep matrices converted after their first use while a budget lasts; convert them again at every use after that."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Generic, TypeVar

from ..gguf.file import GGUFFile, TensorView

A = TypeVar("A")
UNKNOWN = 1 << 32  # bytes of memory supposed to be free where the system does not say


@dataclass(slots=True)
class WeightBudget:
    """Count the bytes of converted weights that may still be kept."""

    left: int

    def take(self, n_bytes: int) -> bool:
        """Take `n_bytes` if so many are left, and say whether they were."""
        if n_bytes > self.left:
            return False
        self.left -= n_bytes
        return True


class Dequantised(Generic[A]):
    """A matrix that is multiplied in float32: `protocol.Matrix` for every type, on the backend that made it."""

    def __init__(
        self,
        view: TensorView,
        dequantize: Callable[[TensorView], A],
        rows: Callable[[TensorView, Sequence[int]], A],
        multiply: Callable[[A, A], A],
        budget: WeightBudget,
    ) -> None:
        self.name, self.shape, self.type = view.name, view.shape, view.type
        self._view = TensorView(view.name, view.type, (view.shape[0], prod(view.shape[1:])), view.data)
        self._dequantize, self._rows, self._multiply, self._budget = dequantize, rows, multiply, budget
        self._kept: A | None = None

    def product(self, x: A) -> A:
        return self._multiply(x, self.array())

    def rows(self, ids: Sequence[int]) -> A:
        return self._rows(self._view, ids)

    def array(self) -> A:
        """Return the weights, (N, K) float32."""
        if self._kept is not None:
            return self._kept
        array = self._dequantize(self._view)
        if self._budget.take(float32_bytes(self._view)):
            self._kept = array
        return array


def float32_bytes(view: TensorView) -> int:
    """Return the memory that keeping this tensor in float32 takes: none for F32, which is read in place."""
    return 0 if view.type == "F32" else 4 * prod(view.shape)


def default_budget(files: Sequence[GGUFFile], device: str = "cpu", precision: str = "exact") -> int:
    """Return the bytes of converted weights to keep.

    As float32: all if they take at most half of the memory that the weights themselves leave free, else none. In
    precision `fast` a CUDA device keeps float16 copies beside the packed weights, in half of that memory, which they
    may use up in part; a processor reads the file's own pages, and keeps nothing."""
    views = [view for file in files for view in file.tensors.values()]
    if device == "cpu" and precision == "fast":
        return 0
    if device == "cpu":
        half = free_memory() // 2  # the weights are pages of the file
    else:
        half = max(0, _free_device_memory() - sum(view.data.nbytes for view in views)) // 2
    if precision == "fast":
        return half
    total = sum(map(float32_bytes, views))
    return total if total <= half else 0


def _free_device_memory() -> int:
    import torch  # here, not above: numpy runs without it

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


def free_memory() -> int:
    """Return the bytes that are free, or a guess where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: half of what the machine has; Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else UNKNOWN
