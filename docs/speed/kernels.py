"""Measure one row times a matrix of every type, beside the read rate of memory: `python docs/speed/kernels.py -t 2`.

Matrices of 4096 x 4096 lie one behind the other in as many bytes as the read rate is measured over, so that every one
comes from memory. It prints JSON, a row for each type: the medians of several passes over all of them.
"""

import argparse
import json
import time
from statistics import median
from typing import Any

import numpy as np

from llava_ref.benchmark.bandwidth import buffer_size, read_rate
from llava_ref.conformance.pairs.random_blocks import random_tensor
from llava_ref.kernels.cpu.activations import Activations, quantise
from llava_ref.kernels.cpu.launch import Launch, Program, run
from llava_ref.kernels.cpu.matvec import DENSE, SUPPORTED, matvec

SIDE, DRAWN, PASSES = 4096, 64, 5


def measured(kind: str, room: np.ndarray, threads: int) -> dict[str, float]:
    """Return bytes and weights a second of one type."""
    few = random_tensor(kind, DRAWN, SIDE, 1).reshape(-1)
    size = few.size * SIDE // DRAWN
    n = len(room) // size
    room[: n * size].reshape(-1, few.size)[:] = few
    x = np.random.default_rng(0).standard_normal((1, SIDE)).astype(np.float32)
    out = np.empty((n, SIDE), np.float32)
    given: Any = x.ctypes.data
    if kind not in DENSE:
        given = Activations.of(1, SIDE)
        run(quantise(x.ctypes.data, SIDE, given, 1), threads=threads)
    stages: list[list[Launch]] = [
        [matvec(kind, room.ctypes.data + i * size, SIDE, SIDE, given, 1, out[i].ctypes.data)] for i in range(n)
    ]
    program = Program(stages, (x, out, room, given))
    program.run(threads)
    assert np.isfinite(out).all() and np.array_equal(out[0], out[-1])
    seconds = median(_seconds(program, threads) for _ in range(PASSES))
    return {"gb_s": n * size / seconds / 1e9, "weights_s": n * SIDE * SIDE / seconds}


def _seconds(program: Program, threads: int) -> float:
    began = time.perf_counter()
    program.run(threads)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-t", "--threads", type=int, required=True)
    threads = parser.parse_args().threads
    read, room, rows = read_rate(threads), np.empty(buffer_size(), np.uint8), []
    for kind in sorted(SUPPORTED):
        before = read()
        found = measured(kind, room, threads)
        rows.append({"type": kind, **found, "read_gb_s": (before + read()) / 2})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
