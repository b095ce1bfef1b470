"""Test the time and memory that reading a GGUF file takes, and the limits on its header."""

import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llava_ref.gguf import cursor
from llava_ref.gguf import file as gguf
from llava_ref.gguf.cursor import LIMITS
from llava_ref.ops import numpy_quants as quants
from llava_ref.ops import torch_quants

from ..support.gguf_files import TEXT, Tensor, build, key, text, write
from .small_files import ROW, THREE, refused

VOCABULARIES = Path(__file__).parents[3] / "shared" / "data" / "vocab"


def rss_of_map(path: Path) -> int:
    """Return the bytes of `path` that are in this process's memory (Linux)."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    return 1024 * int(next(line for line in lines[start:] if line.startswith("Rss:")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_weights_are_not_read_before_they_are_asked_for(tmp_path):
    path = write(tmp_path, build(TEXT, [Tensor("w", "F32", (1024, 4096), bytes(1 << 24))]))
    file = gguf.read(path)
    array = quants.dequantize(file.tensors["w"])
    assert rss_of_map(path) <= 1 << 22  # Linux maps up to 2 MB around what is touched
    array.sum()
    assert rss_of_map(path) >= 1 << 24


@pytest.mark.skipif(not VOCABULARIES.is_dir(), reason="the vocabularies of shared/data are not here")
@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "phi-3", "qwen2"])
def test_headers_of_real_vocabularies_are_quick(name):
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    begin = time.process_time()
    file = gguf.read(path)
    assert time.process_time() - begin < 0.5
    tokens, types = file.array("tokenizer.ggml.tokens", "string"), file.array("tokenizer.ggml.token_type", "int")
    assert len(tokens) == len(types) == file.array_length("tokenizer.ggml.tokens") >= 32_000
    assert tokens[file.integer("tokenizer.ggml.bos_token_id", 0, len(tokens) - 1)].startswith("<")


def test_the_map_outlives_the_file_object_and_the_file_is_never_written(tmp_path):
    content = build((), [Tensor("w", "F32", (4,), np.arange(4, dtype=np.float32).tobytes())])
    path = write(tmp_path, content)
    view = gguf.read(path).tensors["w"]
    tensor, array = torch_quants.dequantize(view, "cpu"), quants.dequantize(view)
    del view
    assert tensor.tolist() == array.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 9
    tensor[0] = 9
    assert path.read_bytes() == content


def test_weights_at_odd_addresses(tmp_path):
    """Check files with an alignment of 1: numbers then start at addresses that numpy and torch never choose."""
    kinds = ["I8", "F32", "I8", "Q8_0", "I8", "F16", "BF16", "I8", "I64", "I8", "Q4_K", "I8", "IQ1_M", "I8", "IQ2_XXS"]
    tensors = [Tensor(f"{i}", kind, (256 if kind != "I8" else 1,)) for i, kind in enumerate(kinds)]
    file = gguf.read(write(tmp_path, build([("general.alignment", "u32", 1)], tensors, alignment=1)))
    straight = gguf.read(write(tmp_path, build((), tensors), "aligned.gguf"))
    for name, view in file.tensors.items():
        want = quants.dequantize(straight.tensors[name])
        np.testing.assert_array_equal(quants.dequantize(view), want)
        got = torch_quants.dequantize(view, "cpu")
        np.testing.assert_array_equal(got.numpy(), want)
        assert got.data_ptr() % 4 == 0


MEASURE = """
import os, resource, sys, time
from llava_ref import gguf, errors
for path in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # before the fork it would be that of pytest
    begin = time.process_time()
    try:
        gguf.read(path)
    except errors.GGUFError:
        pass
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
    print(time.process_time() - begin, megabytes, path, flush=True)
    os._exit(0)
"""


def header(n_keys: int, n_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys)


def array_of(element: int, count: int) -> bytes:
    return text("k") + struct.pack("<IIQ", 9, element, count)


COSTLY = {  # the first bytes of a file, and its size: the rest is zeros
    "empty strings": (header(1) + array_of(8, LIMITS["array elements"]), LIMITS["bytes of header"]),
    "arrays in an array": (header(1) + array_of(9, LIMITS["array elements"] // 32), LIMITS["bytes of header"]),
    "a string of 64 MB": (header(1) + text("k") + struct.pack("<IQ", 8, 1 << 26), 1 << 40),
    "many keys": (header(65_536) + b"".join(key(str(i), "bool", 0) for i in range(65_536)), 1 << 40),
    "long keys": (header(300) + b"".join(key(f"{i:05}" * 13_107, "u8", 0) for i in range(300)), 1 << 40),
    "wide keys": (header(300) + b"".join(key(f"{i:05}" * 13_100 + "😀", "u8", 0) for i in range(300)), 1 << 40),
    "many tensors": (
        header(0, 65_536) + b"".join(text(str(i)) + struct.pack("<IQIQ", 1, 1, 24, 32 * i) for i in range(65_536)),
        1 << 40),
    "zeros": (b"", 1 << 40),
}  # fmt: skip


def test_the_most_a_header_can_cost(tmp_path):
    """Check the promise of 5 s and 500 MB for any file of any size."""
    paths = [write(tmp_path, content, kind) for kind, (content, _) in COSTLY.items()]
    for path, (_, size) in zip(paths, COSTLY.values(), strict=True):
        os.truncate(path, size)
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [row[2] for row in rows] == [str(path) for path in paths], done.stderr
    assert all(float(seconds) < 5 and float(megabytes) < 400 for seconds, megabytes, _ in rows), done.stdout


@pytest.mark.parametrize(
    "what, keys, tensors",
    [
        ("keys", THREE, []),
        ("tensors", [], ROW),
        ("characters in keys", [("ab", "u8", 0), ("c", "u8", 0)], []),
        ("array elements", [("a", "u8[]", [1, 2]), ("b", "string[]", ["x"])], []),
    ],
)
def test_limits_count_a_whole_file(what, keys, tensors, tmp_path, monkeypatch):
    path = write(tmp_path, build(keys, tensors))
    monkeypatch.setitem(LIMITS, what, 3)
    gguf.read(path)
    monkeypatch.setitem(LIMITS, what, 2)
    refused(path, f"{what} exceed the limit, 2 in all")


def test_an_array_in_an_array_counts_for_32_elements(tmp_path, monkeypatch):
    path = write(tmp_path, build([("k", "u8[][]", [[1, 2], [3]])]))
    monkeypatch.setitem(LIMITS, "array elements", 2 * 32 + 3)
    gguf.read(path)
    monkeypatch.setitem(LIMITS, "array elements", 2 * 32 + 2)
    refused(path, "k", "array elements exceed the limit")


@pytest.mark.parametrize("kind, content", [("string", "abcd"), ("string[]", ["", "abcd"])])
def test_strings_have_a_maximum_length(kind, content, tmp_path, monkeypatch):
    path = write(tmp_path, build([("k", kind, content)]))
    monkeypatch.setattr(cursor, "MAX_STRING", 4)
    gguf.read(path)
    monkeypatch.setattr(cursor, "MAX_STRING", 3)
    refused(path, "k", "4 bytes")


def test_headers_have_a_maximum_size(tmp_path, monkeypatch):
    path = write(tmp_path, build([("k", "string", "x" * 1000)]))
    monkeypatch.setitem(LIMITS, "bytes of header", 500)
    refused(path, "k", "the limit of 500 for headers ends after")


def test_a_file_larger_than_the_memory_is_mapped(tmp_path):
    path = write(tmp_path, build((), [Tensor("w", "F32", (1 << 20, 1 << 16), b"")], cut=0) + b"")
    os.truncate(path, (1 << 38) + 1024)  # 256 GiB, a hole
    assert gguf.read(path).tensors["w"].shape == (1 << 16, 1 << 20)


def test_a_file_that_cannot_be_mapped_is_refused(tmp_path):
    path = write(tmp_path, build())
    os.truncate(path, 1 << 42)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 41, limits[1]))
    try:
        refused(path, "cannot be mapped into memory")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
