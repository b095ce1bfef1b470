"""Measure the kernels of a processor: `python -m llava_ref.kernels.cpu.bench [--json] [--only NAME]`, some minutes.

Every kernel goes through a buffer that is several times as large as the last cache, and so does, in turn with it, a
kernel that only reads: the rate at which memory is read is that of the same moments. For one thread time is the
thread's own, for all threads that of the clock; the least of some passes counts. `cores` says how many processors the
pass had at work: where it is clearly below the threads, something else was running, and the rates say little.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from llava_ref.benchmark.bandwidth import buffer_size
from llava_ref.ops.threads import processors

from . import processor
from .bench_jobs import Buffer, Job, jobs
from .compiled import kernel
from .launch import Launch, Program, arguments
from .simd import i64x8, load, splat, store, words
from .traced import Cell, Number, loop

PASSES = 5
PAGE = 4096
LEAST = 1 << 30
"""Bytes of the buffer; more where the last cache is large."""


@kernel
def read(args: Number, first: Number, end: Number) -> None:
    """Read pages, and write what depends on all of them."""
    start, out = words(args, 2)
    sums = [Cell(splat(i64x8, 0)) for _ in range(4)]
    for page in loop(first, end):
        for at in range(0, PAGE, 64):
            found = sums[at // 64 % 4]
            found.value = found.value ^ load(i64x8, start + page * PAGE + at)
    store(sums[0].value ^ sums[1].value ^ sums[2].value ^ sums[3].value, out)


@dataclass(frozen=True, slots=True)
class Rate:
    """What a kernel did with some threads."""

    kernel: str
    threads: int
    cores: float
    gb_s: float
    """10^9 bytes that it reads and writes, a second; 0 where they do not matter."""
    read_gb_s: float
    """10^9 bytes a second of a kernel that only reads, in the same moments."""
    g_s: float
    """10^9 weights a second, or where the job says so operations, a product and a sum being two."""
    unit: str


def reading(buffer: Buffer) -> tuple[Program, np.ndarray]:
    """Make what reads the whole buffer, and where it leaves what depends on all of it, with one thread."""
    out = np.zeros(8, np.int64)
    launch = Launch(read, arguments(buffer.address, out.ctypes.data), buffer.size // PAGE, 256)
    return Program([[launch]], keep=(buffer, out)), out


def timed(job: Job | Program, threads: int) -> tuple[float, float]:
    """Run once, and return the seconds and how many processors were at work."""
    own, all_, wall = time.thread_time(), time.process_time(), time.perf_counter()
    job.run(threads)
    wall, all_ = time.perf_counter() - wall, time.process_time() - all_
    return (time.thread_time() - own if threads == 1 else wall), all_ / wall


def measured(name: str, job: Job, reader: Program, size: int, threads: int) -> Rate:
    """Measure a job and reading in turn. Compiled code is there: a pass before is not counted."""
    job.run(threads)
    passes = [(timed(reader, threads)[0], timed(job, threads)) for _ in range(PASSES)]
    seconds, cores = min(of_job for _, of_job in passes)
    rate, amount = size / min(of_reading for of_reading, _ in passes), job.amount / seconds
    return Rate(name, threads, cores, job.n_bytes / seconds / 1e9, rate / 1e9, amount / 1e9, job.unit)


def rates(only: str, most: int) -> Iterator[Rate]:
    """Measure the jobs whose names contain `only`, with one thread and with `most`."""
    buffer = Buffer(max(buffer_size(), LEAST))
    reader, _ = reading(buffer)
    for name, make in jobs().items():
        if only in name:
            job = make(buffer)
            for threads in dict.fromkeys((1, most)):
                yield measured(name, job, reader, buffer.size, threads)


def line(rate: Rate) -> str:
    """Write a rate as a row of the table."""
    share = f"{rate.gb_s:8.1f} {rate.read_gb_s:8.1f} {rate.gb_s / rate.read_gb_s:6.2f}" if rate.gb_s else " " * 24
    return f"{rate.kernel:34} {rate.threads:7} {rate.cores:5.2f} {share} {rate.g_s:8.1f} {rate.unit}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each job and number of threads; return the exit code."""
    parser = argparse.ArgumentParser("python -m llava_ref.kernels.cpu.bench", allow_abbrev=False)
    parser.add_argument("--only", metavar="NAME", default="", help="jobs whose names contain it")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each row")
    args = parser.parse_args(argv)
    print(f"instructions: {processor.LEVEL}", file=sys.stderr)
    if not args.json:
        print(f"{'kernel':34} threads cores     GB/s     read  share      G/s")
    count = 0
    for count, rate in enumerate(rates(args.only, processors()), 1):  # noqa: B007
        print(json.dumps(asdict(rate)) if args.json else line(rate), flush=True)
    if not count:
        print(f"error: --only: {args.only!r}: no kernel has this in its name", file=sys.stderr)
    return 0 if count else 2


if __name__ == "__main__":
    sys.exit(main())
