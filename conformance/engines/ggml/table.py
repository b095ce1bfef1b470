"""Measure the distance of our matrix products from ggml's, for every weight type.

`python -m llava_ref.conformance.engines.ggml.table` prints the table. Both sides get the same random blocks and the
same activations. In precision `ggml` the remaining difference is the order of float32 sums, in precision `exact` it is
the cost of ggml's rounding of activations. T rows, N width out, K width in.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from llava_ref.gguf.file import TensorView
from llava_ref.ops import get_ops
from llava_ref.ops.protocol import Ops
from llava_ref.tracing.distance import rel_rms

from ...pairs.random_blocks import random_tensor
from . import operations as ggml_reference

PAGE = Path(__file__).parents[3] / "docs" / "ggml.md"
BEGIN, END = "<!-- products: begin -->\n", "<!-- products: end -->"
SHAPES = ((1, 64, 256), (7, 33, 512), (65, 96, 1024), (13, 130, 1280), (1, 40, 4096))  # T, N, K
SEEDS = range(3)
BOUND = 2e-6
"""Bound of relRMS in precision `ggml`."""
EXACT_BOUND: dict[str, float] = {"F32": 1e-6, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 2e-2, "Q8_1": 2e-2, "Q8_K": 4e-2}
"""Bound of relRMS in precision `exact`, by the type that ggml rounds activations to."""


@dataclass(frozen=True, slots=True)
class Product:
    """Holds the inputs of one matrix product."""

    kind: str
    weights: np.ndarray  # (N, bytes of a row) uint8
    x: np.ndarray  # (T, K) float32


@dataclass(frozen=True, slots=True)
class ProductErrors:
    """Holds the worst relRMS of one type over all products, by precision."""

    kind: str
    rounding: str
    ggml: float
    exact: float


def products(kind: str) -> Iterator[Product]:
    """Yield products of every shape and seed; half of the rows have outliers, as a transformer's activations do."""
    for (T, N, K), seed in product(SHAPES, SEEDS):
        rng = np.random.default_rng([seed, T, N, K])
        calm, wild = rng.standard_normal((T, K)), rng.standard_t(5, (T, K))
        x = np.where((np.arange(T)[:, None] + seed) % 2 == 0, calm, wild).astype(np.float32)
        yield Product(kind, random_tensor(kind, N, K, [seed, T]), x)


def measure(kinds: Sequence[str] | None = None) -> list[ProductErrors]:
    """Measure every type that ggml has a kernel for, or `kinds` of them.

    Raises OracleError without llama.cpp, and if ggml fails at a product."""
    kernels = ggml_reference.kernels()
    exact, ggml = (get_ops("numpy", "cpu", 1, 0, precision) for precision in ("exact", "ggml"))
    rows = []
    for kind in kernels if kinds is None else kinds:
        cases = list(products(kind))
        want = ggml_reference.arrays([ggml_reference.mul_mat(p.kind, p.weights, p.x) for p in cases])
        worst = [max(rel_rms(_ours(ops, p), w) for p, w in zip(cases, want, strict=True)) for ops in (ggml, exact)]
        rows.append(ProductErrors(kind, kernels[kind], worst[0], worst[1]))
    return rows


def _ours(ops: Ops, p: Product) -> np.ndarray:
    shape = (len(p.weights), p.x.shape[1])
    weight = ops.matrix(TensorView("weights", p.kind, shape, memoryview(bytearray(p.weights))))
    return ops.numpy(weight.product(ops.array(p.x)))


def markdown(rows: Sequence[ProductErrors]) -> str:
    """Format the table for docs/ggml.md."""
    head = "| weights | activations become | relRMS in `ggml` | in `exact` |\n|---|---|---|---|\n"
    return head + "".join(f"| {row.kind} | {row.rounding} | {row.ggml:.1e} | {row.exact:.1e} |\n" for row in rows)


def between_markers(page: str) -> str:
    """Return the table that a page has now."""
    return page.split(BEGIN)[1].split(END)[0]


def with_table(page: str, table: str) -> str:
    """Return the page with `table` between its markers."""
    return page.replace(BEGIN + between_markers(page) + END, BEGIN + table + END)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Every matrix product against ggml's own.")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.parent.name}/{PAGE.name}")
    write = parser.parse_args(argv).write
    table = markdown(measure())
    print(table, end="")
    if write:
        PAGE.write_text(with_table(PAGE.read_text(), table))


if __name__ == "__main__":
    main()
