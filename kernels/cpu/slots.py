"""Lend threads scratch memory: a kernel claims a slot, and gives it back when it is done.

No kernel knows which thread runs it; but there are as many slots as threads, so that one is always free.
"""

from typing import Any

import torch
from llvmlite import ir

from .llvm import I64, pointer
from .traced import Cell, Number, Value, operation, pick, turns, when

FLAG = 64  # bytes from one flag to the next: a cache line


@operation
def exchange(builder: Any, address: Any, value: Any) -> Any:
    """Write an int64, and return what stood there, as one step for all threads."""
    return builder.atomic_rmw("xchg", pointer(builder, I64, address), value, "seq_cst")


@operation
def call(builder: Any, kernel: Any, args: Any, first: Any, end: Any) -> None:
    """Call a kernel by its address."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * 3)
    builder.call(pointer(builder, kind, kernel), [args, first, end])


def claim(flags: Number, count: Number) -> Value:
    """Return the number of a slot that nobody has."""
    slot = Cell(0)
    for turn in turns():
        with when(exchange(flags + FLAG * slot.value, 1) == 0):
            turn.leave()
        slot.value = pick(slot.value + 1 < count, slot.value + 1, 0)
    return slot.value


def give(flags: Number, slot: Number) -> None:
    """Give a slot back."""
    exchange(flags + FLAG * slot, 0)


class LentScratch:
    """Scratch for so many threads, which grows."""

    def __init__(self, count: int) -> None:
        self.count, self._flags = count, torch.zeros(FLAG * (count + 1), dtype=torch.uint8)
        self._memory, self._size = torch.empty(0, dtype=torch.uint8), 0

    def of(self, size: int) -> tuple[Any, ...]:
        """Return the addresses of the flags and of the first slot, the bytes of a slot (at least `size`), the count."""
        if size > self._size:
            self._size = -(-size // 4096) * 4096 + FLAG
            self._memory = torch.empty(self.count * self._size + 4096, dtype=torch.uint8)
        first = -(-self._memory.data_ptr() // 4096) * 4096
        flags = -(-self._flags.data_ptr() // FLAG) * FLAG
        return flags, first, self._size, self.count
