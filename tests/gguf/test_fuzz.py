"""Fuzz the GGUF reader: each mutated file opens or raises GGUFError, nothing else, in little memory.

    python -m tests.gguf.test_fuzz --seconds 60 --seed 1

A failure names its seed and number; `--seed S --first N --count 1` repeats it.
"""

import argparse
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from llava_ref import gguf, models
from llava_ref.errors import GGUFError
from llava_ref.gguf.file import GGUFFile
from llava_ref.models import config
from llava_ref.ops import numpy_quants as quants
from llava_ref.tokenizer.tokenizer import Tokenizer

from ..support.gguf_files import good_files, write

SIZES = [0, 1, 2, 3, 4, 5, 8, 9, 12, 13, 31, 32, 63, 64, 255, 256, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31]
SIZES += [(1 << 32) - 1, 1 << 32, 1 << 40, 1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]
ROOT = Path(__file__).parents[2]
MEMORY = 512 << 20  # address space that a run may take beyond what the imports took


def flip(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    begin = rng.randrange(len(data))
    del data[begin : begin + rng.choice([1, 4, 8, 100, len(data)])]


def splice(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    """Copy bytes of another file over or between those of `data`."""
    other = rng.choice(others)
    source, target, length = rng.randrange(len(other)), rng.randrange(len(data)), rng.choice([1, 8, 40, 400])
    piece = other[source : source + length]
    data[target : target + rng.choice([0, len(piece)])] = piece


def overwrite(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    """Change a number, which may be a length, count, type or offset; half of the time one that looks like 64 bits."""
    at = rng.randrange(max(1, len(data) - 8))
    if rng.random() < 0.5:
        numbers = [i for i in range(len(data) - 8) if data[i] and not any(data[i + 2 : i + 8])]
        at = rng.choice(numbers or [at])
    size = rng.choice(SIZES) if rng.random() < 0.7 else data[at] + rng.choice([-1, 1, 7])
    packed = struct.pack("<Q", size % (1 << 64))[: rng.choice([1, 4, 8])]
    data[at : at + len(packed)] = packed


MUTATIONS: list[Callable[[bytearray, list[bytes], random.Random], None]] = [flip, cut, splice, overwrite, overwrite]


def mutated(seeds: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        rng.choice(MUTATIONS)(data, seeds, rng)
        if not data:
            return b""
    return bytes(data)


def refusals(calls: list[Callable[[], object]]) -> int:
    """Count the `calls` that raise GGUFError; any other exception is passed on."""
    count = 0
    for call in calls:
        try:
            call()
        except GGUFError as error:
            assert len(str(error)) < 1000 and str(error).isprintable()
            count += 1
    return count


def exercise(file: GGUFFile) -> None:
    """Call every getter on every key, every reader of settings, and decode every tensor."""
    calls: list[Callable[[], object]] = [lambda: config.read_text(file, "llama"), lambda: config.read_vision(file)]
    calls += [lambda: models.text_family(file), lambda: models.tower_family(file)]
    calls.append(lambda: Tokenizer.from_gguf(file))
    for key in file:
        file.describe(key)
        calls += [lambda k=key: file[k], lambda k=key: file.string(k), lambda k=key: file.boolean(k)]
        calls += [lambda k=key: file.integer(k, 0, 1000), lambda k=key: file.number(k, -1.0, 1.0)]
        calls += [lambda k=key: file.array_length(k)]
        calls += [lambda k=key, e=e: file.array(k, e) for e in ("int", "float", "bool", "string")]
    refusals(calls)
    for view in file.tensors.values():
        assert quants.dequantize(view).shape == view.shape
        if len(view.shape) == 2 and 0 not in view.shape:
            quants.dequantize_rows(view, [view.shape[0] - 1])


def run(folder: Path, seed: int, first: int, count: int, seconds: float) -> tuple[int, int]:
    """Try up to `count` files for up to `seconds`; return the numbers of files tried and opened."""
    seeds, opened, end = good_files(), 0, time.monotonic() + seconds
    for number in range(first, first + count):
        if time.monotonic() > end:
            return number - first, opened
        path = write(folder, mutated(seeds, random.Random(f"{seed} {number}")))
        try:
            try:
                file = gguf.read(path)
            except GGUFError as error:
                assert str(error).startswith(str(path)) and len(str(error)) < 1000 and str(error).isprintable()
                continue
            opened += 1
            exercise(file)
        except BaseException:
            print(f"--seed {seed} --first {number} --count 1", file=sys.stderr)
            raise
    return count, opened


def test_mutations_open_or_are_refused(tmp_path):
    tried, opened = run(tmp_path, seed=0, first=0, count=300, seconds=10)
    assert tried and 0 < opened < tried


def test_mutations_take_little_memory():
    """Fuzz in a process of its own, which may take at most `MEMORY`, and in which every warning is an error."""
    command = [sys.executable, "-W", "error", "-m", __name__, "--seconds", "4", "--count", "2000", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_fuzzer_finds_a_planted_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("llava_ref.gguf.file._check_layout", lambda *args: None)
    try:
        run(tmp_path, seed=0, first=0, count=2000, seconds=30)
    except (ValueError, AssertionError):
        return
    raise AssertionError("tensors past the end of the file went unnoticed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="time budget")
    parser.add_argument("--count", type=int, default=1 << 60, help="number of files")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), -1, 0, 50, 10)  # imports what is imported late
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        tried, opened = run(Path(folder), args.seed, args.first, args.count, args.seconds)
    print(f"{tried} files, {opened} opened, {tried - opened} refused")


if __name__ == "__main__":
    main()
