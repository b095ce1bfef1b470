"""Small kernels whose machine code is known, and a command that compiles them into a folder.

`python -m tests.kernels.toys FOLDER`, in a process without Triton's interpreter, which cannot compile.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import triton
import triton.language as tl

from llava_ref.kernels.compiled import build
from llava_ref.kernels.triton.variant import Variant


@triton.jit
def copy(x, y, n, stride, BLOCK: tl.constexpr):
    """Copy in a plain loop, which ptxas unrolls."""
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(y + at, tl.load(x + at * stride))


@triton.jit
def column_sums(x, y, n, BLOCK: tl.constexpr, REAL: tl.constexpr):
    """Hold more numbers in a thread than it has registers."""
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, 64)
    total = tl.zeros((BLOCK, 64), tl.float32)
    for start in range(0, n):
        total += tl.load(x + start * BLOCK * 64 + rows[:, None] * 64 + columns[None, :])
    tl.store(y + rows[:, None] * 64 + columns[None, :], total * (1.0 if REAL else 0.0))


@triton.jit
def product(x, w, y, n):
    """Multiply tiles of float16 on tensor cores, through shared memory."""
    rows, columns = tl.arange(0, 64)[:, None], tl.arange(0, 64)[None, :]
    total = tl.zeros((64, 64), tl.float32)
    for start in range(0, n, 64):
        a = tl.load(x + rows * n + start + columns)
        b = tl.load(w + (start + rows) * 64 + columns)
        total = tl.dot(a, b, total)
    tl.store(y + rows * 64 + columns, total)


def variants() -> Iterator[Variant]:
    floats = {"x": "*fp32", "y": "*fp32", "n": "i32"}
    yield Variant("copy", copy, floats, {"stride": 1, "BLOCK": 1024}, weights=1024)
    yield Variant("copy, strided", copy, floats | {"stride": "i32"}, {"BLOCK": 1024}, weights=1024)
    yield Variant("sums", column_sums, floats, {"BLOCK": 64}, warps=8)
    yield Variant("sums, spilt", column_sums, floats, {"BLOCK": 128}, warps=1)
    yield Variant("product", product, {"x": "*fp16", "w": "*fp16", "y": "*fp32", "n": "i32:16"}, weights=4096)
    yield Variant("wrong types", product, {"x": "*fp16", "w": "*i8", "y": "*fp32", "n": "i32"})
    yield Variant("wrong arguments", copy, {"x": "*fp32", "y": "*fp32", "m": "i32"}, {"stride": 1, "BLOCK": 1024})


def main(folder: Path) -> None:
    for variant in variants():
        if variant.name.startswith("wrong"):
            continue
        made = build(variant, 90)
        (folder / f"{variant.name}.cubin").write_bytes(made.asm["cubin"])
        (folder / f"{variant.name}.ptx").write_text(made.asm["ptx"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
