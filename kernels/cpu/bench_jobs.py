"""What `bench` runs: each kernel as a model of 7B has it, K 4096, once through a large buffer.

The buffer holds random bytes, which are blocks of any type, and ordinary numbers as float16, bfloat16 and float32: no
subnormal one, which would take longer. M rows of x, N rows of a matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from llava_ref.gguf.types import TYPES

from .activations import RoundedRows, quantise
from .attention import attention
from .gates import gate
from .launch import Program, run
from .matvec import DENSE, FEW, SUPPORTED, matvec
from .norms import add, rms_norm
from .product import ManyRows
from .prompt_attention import prompt_attention
from .rows import widened

K, MATRIX, PROMPT, KEYS = 4096, 32 << 20, 512, 4096
"""Columns, bytes of a matrix, rows of a prompt, keys before a token."""


class Buffer:
    """Random bytes, some at the same place again and again."""

    def __init__(self, size: int) -> None:
        piece = np.random.default_rng(0).integers(0, 256, min(size, 64 << 20), np.uint8)
        piece[1::2] = 0x3A + piece[1::2] % 4  # the byte with the exponent
        self._bytes = np.tile(piece, -(-size // len(piece)))
        self.address, self.size = self._bytes.ctypes.data, size // 4096 * 4096

    def places(self, length: int) -> list[int]:
        """Return the addresses of pieces of a length, side by side."""
        if length > self.size:
            raise ValueError(f"length: {length} bytes, of a buffer of {self.size}")
        return [self.address + i * length for i in range(self.size // length)]


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured: something to run with a number of threads, and how much it does."""

    run: Callable[[int], object]
    n_bytes: int
    amount: int
    unit: str


def jobs() -> dict[str, Callable[[Buffer], Job]]:
    """Return the names of all jobs, and what makes one of a buffer: kernels are compiled then."""
    kinds = sorted(SUPPORTED)
    found: dict[str, Callable[[Buffer], Job]] = {}
    found |= {f"matvec {kind} x {M}": partial(few_rows, kind, M) for kind in kinds for M in (1, FEW)}
    found |= {f"product {kind} x {PROMPT}": partial(many_rows, kind) for kind in kinds}
    found |= {f"rows as bfloat16 {kind}": partial(bfloat16, kind) for kind in kinds}
    found |= {f"attention 32 over {H} heads": partial(one_query, H) for H in (32, 8)}
    found |= {f"prompt attention {PROMPT}": many_queries}
    return found | {name: partial(small, name) for name in SMALL}


def row_bytes(kind: str) -> int:
    return K // TYPES[kind].weights * TYPES[kind].bytes


def few_rows(kind: str, M: int, buffer: Buffer) -> Job:
    """Multiply M rows by one matrix after another; weights are counted once."""
    size = row_bytes(kind)
    N, places = MATRIX // size, buffer.places(MATRIX)
    x, out, rounded = torch.randn(M, K), torch.empty(M, N), RoundedRows.of(M, K)
    run(quantise(x.data_ptr(), K, rounded, M), threads=1)
    given = x.data_ptr() if kind in DENSE else rounded
    stages = [[matvec(kind, at, N, K, given, M, out.data_ptr())] for at in places]
    program = Program(stages, keep=(buffer, x, rounded, out))
    return Job(program.run, len(places) * N * size, len(places) * N * K, "Gw/s")


def many_rows(kind: str, buffer: Buffer) -> Job:
    """Multiply the rows of a prompt by two matrices."""
    N, x = min(2048, buffer.size // row_bytes(kind)), torch.randn(PROMPT, K)
    places = buffer.places(N * row_bytes(kind))[:2]

    def multiplied(threads: int) -> None:
        many = products.setdefault(threads, ManyRows(threads))
        rows = many.input(x)
        for at in places:
            many.product(kind, at, N, K, rows)

    products = dict[int, ManyRows]()
    return Job(multiplied, 0, 2 * len(places) * PROMPT * N * K, "Gop/s")


def bfloat16(kind: str, buffer: Buffer) -> Job:
    """Widen one matrix after another, into memory that stays in a cache."""
    size, n = row_bytes(kind), 64
    places, out = buffer.places(n * size), torch.empty(n, K, dtype=torch.bfloat16)
    places = places[: max(1, (MATRIX << 2) // (n * size))]
    stages = [[widened(kind, at, K, 0, n, out.data_ptr())] for at in places]
    program, count = Program(stages, keep=(buffer, out)), len(places) * n
    return Job(program.run, count * size, count * K, "Gw/s")


def one_query(Hkv: int, buffer: Buffer) -> Job:
    """Attend from a token over one cache after another: 32 heads of 128 over Hkv."""
    H, dh = 32, 128
    size = Hkv * KEYS * dh * 2
    places = buffer.places(2 * size)
    q, out, seen = torch.randn(1, H, dh), torch.empty(1, H * dh), torch.tensor([[0, KEYS]])
    tables = [torch.tensor([[at, at + size, 2 * KEYS * dh]]) for at in places]
    stages = [
        [attention(q.data_ptr(), t.data_ptr(), seen.data_ptr(), out.data_ptr(), 1, H, Hkv, dh, dh**-0.5)]
        for t in tables
    ]
    program = Program(stages, keep=(buffer, q, out, seen, tables))
    amount = len(places) * 4 * H * KEYS * dh
    return Job(program.run, len(places) * 2 * size, amount, "Gop/s")


def many_queries(buffer: Buffer) -> Job:
    """Attend from every row of a prompt to those before it."""
    H, dh = 32, 128
    q, (k, v) = torch.randn(PROMPT, H, dh), torch.randn(2, PROMPT, H, dh).half()
    ranges = torch.stack((torch.zeros(PROMPT, dtype=torch.int64), torch.arange(PROMPT) + 1), 1)
    amount = 4 * H * dh * PROMPT * (PROMPT + 1) // 2
    return Job(lambda threads: prompt_attention(q, k, v, ranges, dh**-0.5, threads), 0, amount, "Gop/s")


SMALL = {"rms_norm": 2, "add": 3, "gate silu": 3, "quantise": 1.5}
"""What is small beside a product, and how many arrays of float32 it reads and writes."""


def small(name: str, buffer: Buffer) -> Job:
    """Do it 64 times for the rows of a prompt."""
    x, y, out, gain = torch.randn(PROMPT, K), torch.randn(PROMPT, K), torch.empty(PROMPT, K), torch.randn(K)
    n, rounded = x.numel(), RoundedRows.of(PROMPT, K)
    a, b, c, g = (t.data_ptr() for t in (x, y, out, gain))
    launch = {
        "rms_norm": rms_norm(a, g, c, PROMPT, K, 1e-5),
        "add": add(a, b, c, n),
        "gate silu": gate(a, b, c, n, "silu"),
        "quantise": quantise(a, K, rounded, PROMPT),
    }[name]
    program = Program([[launch]] * 64, keep=(x, y, out, gain, rounded))
    return Job(program.run, int(64 * SMALL[name] * 4 * n), 64 * n, "G numbers/s")
