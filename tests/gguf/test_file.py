"""Test the GGUF reader: files it must read, files it must refuse by field, and the time and memory it takes."""

import gc
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf as package
import numpy as np
import pytest

from llava_ref.errors import GGUFError
from llava_ref.gguf import cursor
from llava_ref.gguf import file as gguf
from llava_ref.gguf.cursor import LIMITS
from llava_ref.models import config
from llava_ref.ops import numpy_quants as quants
from llava_ref.ops import torch_quants

from ..support.gguf_files import ODD, TEXT, VISION, Tensor, build, good_files, key, text, write

HUGE = (1 << 64) - 1
VOCABULARIES = Path(__file__).parents[3] / "shared" / "data" / "vocab"
ROW = [Tensor("a", "F32", (8,)), Tensor("b", "Q8_0", (32, 2)), Tensor("c", "F16", (5,))]
THREE = [("my_key_0", "u32", 1), ("my_key_1", "string", "x"), ("my_key_2", "f32[]", [1.0])]


def refused(path: Path, *words: str) -> GGUFError:
    """Return the error of reading `path`, after checking that it names the file and contains `words`."""
    with pytest.raises(GGUFError) as caught:
        gguf.read(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message) < 1000 and message.isprintable()
    assert all(word in message for word in words), message
    return caught.value


# The kinds of file in llama.cpp's tests/test-gguf.cpp, under its names. Its zero axis is a good file there; not here.
BAD = {
    "HEADER_BAD_MAGIC": (build(magic=b"FUGG"), "magic", "b'FUGG'"),
    "HEADER_BAD_VERSION_0": (build(version=0), "version", "0 is not supported"),
    "HEADER_BAD_VERSION_1": (build(version=1), "version", "1 is not supported"),
    "HEADER_BAD_VERSION_FUTURE": (build(version=4), "version", "4 is not supported"),
    "HEADER_BAD_N_KV": (build(n_keys=HUGE), "metadata count", str(HUGE)),
    "HEADER_BAD_N_TENSORS": (build(n_tensors=HUGE), "tensor count", str(HUGE)),
    "KV_BAD_KEY_SIZE": (build([text("my_key_0", HUGE)]), "metadata key", str(HUGE)),
    "KV_EMPTY_KEY": (build([("", "u32", 1)]), "metadata key", "empty"),
    "KV_BAD_TYPE": (build([text("my_key_0") + struct.pack("<IB", 13, 0)]), "my_key_0", "unknown value type 13"),
    "KV_BAD_TYPE in an array": (build([text("k") + struct.pack("<IIQB", 9, 13, 1, 0)]), "k", "type 13"),
    "KV_DUPLICATE_KEY": (build([("my_key_0", "u32", 1), ("my_key_0", "i8", 1)]), "my_key_0", "duplicate"),
    "KV_BAD_ALIGN": (build([("general.alignment", "u32", 13)]), "general.alignment", "power of two"),
    "KV_WRONG_TYPE_ALIGN": (build([("general.alignment", "i32", 32)]), "general.alignment", "i32"),
    "TENSORS_BAD_NAME_SIZE": (build((), [Tensor("my_tensor_" + "x" * 54)]), "tensor name", "64"),
    "TENSORS_BAD_N_DIMS": (build((), [Tensor("t", n_dims=5)]), "t", "5 dimensions"),
    "TENSORS_BAD_SHAPE": (build((), [Tensor("t", ne=(HUGE,), data=b"")]), "t", "bytes of data"),
    "TENSORS_NE_TOO_BIG": (build((), [Tensor("t", "I8", (4 * (2**31 - 1),) * 2, b"")]), "t", "bytes of data"),
    "TENSORS_NBYTES_TOO_BIG": (build((), [Tensor("t", "I64", (1_533_916_891,) * 2, b"")]), "t", "bytes of data"),
    "TENSORS_BAD_TYPE": (build((), [Tensor("t", 43)]), "t", "unknown tensor type 43"),
    "TENSORS_BAD_OFFSET": (build((), [Tensor("t", offset=HUGE)]), "t", "multiple of the alignment"),
    "TENSORS_DUPLICATE_NAME": (build((), [Tensor("my_tensor"), Tensor("my_tensor")]), "my_tensor", "duplicate"),
    "TENSORS_BAD_ALIGN": (build([("general.alignment", "u32", 13)], ROW, alignment=13), "general.alignment", "13"),
    "TENSORS_INCONSISTENT_ALIGN": (build((), ROW, alignment=1), "c", "multiple of the alignment 32"),
    "DATA_NOT_ENOUGH_DATA": (build((), ROW, cut=1), "c", "10 bytes of data"),
    "DATA_BAD_ALIGN": (build([*THREE, ("general.alignment", "u32", 13)], ROW), "general.alignment", "13"),
    "DATA_INCONSISTENT_ALIGN": (build(THREE, ROW, alignment=2), "c", "multiple of the alignment"),
    "DATA_MEM_SIZE_OVERFLOW": (
        build((), [Tensor(n, "I8", (0x7FFFFFFFFFFFFFC0,), b"x" * 32, offset=0) for n in "ab"]), "a", "bytes of data"),
}  # fmt: skip
GOOD = {
    "HEADER_EMPTY": build(),
    "KV_SUCCESS": build([*ODD[:-1], ("raw", "string", b"\xff\xfe\x80")]),
    "TENSORS_SUCCESS": build(THREE, ROW),
    "TENSORS_CUSTOM_ALIGN": build([*THREE, ("general.alignment", "u32", 1)], ROW, alignment=1),
    "DATA_SUCCESS": build(THREE, good_files() and [Tensor(str(i), "F32", (i + 1,)) for i in range(9)]),
    "DATA_CUSTOM_ALIGN": build([("general.alignment", "u32", 64)], ROW, alignment=64),
}


@pytest.mark.parametrize("kind", BAD)
def test_broken_files_of_llama_cpp(kind, tmp_path):
    content, *words = BAD[kind]
    error = refused(write(tmp_path, content), *words)
    assert error.field == words[0]


@pytest.mark.parametrize("kind", GOOD)
def test_good_files_of_llama_cpp(kind, tmp_path):
    gguf.read(write(tmp_path, GOOD[kind]))


MORE_BAD = {
    "big-endian 3": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version", "big-endian"),
    "big-endian 2": (b"GGUF" + struct.pack(">IQQ", 2, 0, 0), "version", "big-endian"),
    "empty file": (b"", "file", "empty"),
    "half a magic": (b"GG", "magic", "not a GGUF file"),
    "only a magic": (b"GGUF", "version", "ends"),
    "short counts": (build()[:20], "tensor count and metadata count", "ends"),
    "missing keys": (build([("a", "u32", 1)], n_keys=2, alignment=1), "metadata key", "ends"),
    "key over the limit": (build([("k" * 65_536, "u32", 1)]), "metadata key", "65536"),
    "key that is not text": (build([(b"\xff\xfe", "u32", 1)]), "metadata key", "UTF-8"),
    "string past the end": (build([text("k") + struct.pack("<I", 8) + text("x", 99)]), "k", "99 bytes"),
    "array past the end": (build([text("k") + struct.pack("<IIQ", 9, 4, 1 << 20)]), "k", "ends"),
    "array of 2^63": (build([text("k") + struct.pack("<IIQ", 9, 0, 1 << 63)]), "k", "exceed the limit"),
    "strings past the end": (build([text("k") + struct.pack("<IIQ", 9, 8, 1000)]), "k", "cannot fit"),
    "string in an array past the end": (
        build([text("k") + struct.pack("<IIQ", 9, 8, 2) + text("ab") + text("", 1 << 62)]), "k", "string 1 of 2"),
    "arrays past the end": (build([text("k") + struct.pack("<IIQ", 9, 9, 1000)]), "k", "cannot fit"),
    "arrays too deep": (build([("k", "u8[][][][][]", [[[[[1]]]]])]), "k", "depth 5"),
    "alignment 0": (build([("general.alignment", "u32", 0)]), "general.alignment", "out of range"),
    "alignment a string": (build([("general.alignment", "string", "32")]), "general.alignment", "is string"),
    "alignment 2^31": (build([("general.alignment", "u32", 1 << 31)]), "general.alignment", "out of range"),
    "a scalar without its number": (build((), [Tensor("t", ne=(), data=b"")]), "t", "4 bytes of data"),
    "a scalar of blocks": (build((), [Tensor("t", "Q8_0", ne=(), data=b"x" * 34)]), "t", "rows of 1 are not whole"),
    "empty tensor name": (build((), [Tensor("")]), "tensor name", "empty"),
    "tensor name that is not text": (build((), [Tensor(b"\xff")]), "tensor name", "UTF-8"),
    "type of an intermediate": (build((), [Tensor("t", 9)]), "t", "type 9"),
    "rows of half a block": (build((), [Tensor("t", "Q8_0", (48, 2), b"x" * 102)]), "t", "blocks of 32"),
    "an empty tensor past the end": (build((), [Tensor("t", ne=(0, 4), offset=1 << 40)]), "t", "the file ends at"),
    "overlap": (build((), [Tensor("a", ne=(9,)), Tensor("b", offset=32)]), "b", "overlaps that of a"),
    "overlap of one byte": (
        build([("general.alignment", "u32", 1)], [Tensor("a", "I8", (5,)), Tensor("b", "I8", (2,), offset=4)]),
        "b", "overlaps that of a"),
    "same data twice": (build((), [Tensor("a"), Tensor("b", offset=0)]), "b", "overlaps that of a"),
    "offset past the end": (build((), [Tensor("a", offset=1 << 40)]), "a", "the file ends at"),
    "size that wraps to 0": (build((), [Tensor("t", "I8", (1 << 32, 1 << 32), b"")]), "t", str(1 << 64)),
    "terminal codes": (build([("\x1b[31m\n", "u8", 0), ("\x1b[31m\n", "u8", 0)]), r"\x1b[31m\n", "duplicate"),
    "name in every language": (build((), [Tensor("é\u202e\x00" * 9, 99)]), r"é\u202e\x00", "type 99"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MORE_BAD)
def test_broken_files(kind, tmp_path):
    content, *words = MORE_BAD[kind]
    refused(write(tmp_path, content), *words)


def test_a_good_file_truncated_at_any_byte_is_refused(tmp_path):
    content = build([("a", "string[]", ["b"]), *ODD[-4:-1], ("general.alignment", "u32", 1)], ROW, alignment=1)
    path = write(tmp_path, content)
    gguf.read(path)
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        refused(path)


@pytest.mark.parametrize("content", good_files())
def test_all_of_a_good_file_is_read(content, tmp_path):
    file = gguf.read(write(tmp_path, content))
    assert len(dict(file)) == len(file)
    for name, tensor in file.tensors.items():
        assert tensor.name == name and quants.dequantize(tensor).shape == tensor.shape
    padded = gguf.read(write(tmp_path, content + b"anything"))
    assert dict(padded) == dict(file)


def test_values_of_every_type(tmp_path):
    file = gguf.read(write(tmp_path, build(ODD, alignment=64)))
    assert file["odd.nested"] == [[1, 2], [], [3]] and file["odd.deep"] == [[["a"], []], []]
    assert file["odd.i8"] == 1 and file["odd.bool"] is True and file["odd.array.bool"] == [False, True, True]
    assert file["odd.array.f64"] == [0.0, 1.0, 1.0] and file["odd.empty"] == []
    assert file.describe("odd.deep") == ("array[array]", 2) and file.describe("odd.u64") == ("u64", 1)
    assert file.describe("odd.empty") == ("array[string]", 0) and list(file)[0] == "odd.u8"
    assert "absent" not in file and file.get("absent") is None


def test_files_of_the_gguf_package(tmp_path):
    path = tmp_path / "package.gguf"
    writer = package.GGUFWriter(path, "llama")
    writer.add_uint8("a", 255)
    writer.add_int64("b", -(1 << 63))
    writer.add_float64("c", 0.1)
    writer.add_array("d", ["é", ""])
    writer.add_array("e", [[1, 2], [3]])
    writer.add_custom_alignment(128)
    weights = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer.add_tensor("w", weights)
    writer.add_tensor("q", package.quantize(weights, q8 := package.GGMLQuantizationType.Q8_0), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf.read(path)
    assert file.version == 3 and [file[k] for k in "abcde"] == [255, -(1 << 63), 0.1, ["é", ""], [[1, 2], [3]]]
    assert [(t.type, t.shape) for t in file.tensors.values()] == [("F32", (2, 32)), ("Q8_0", (2, 32))]
    np.testing.assert_array_equal(quants.dequantize(file.tensors["w"]), weights)


def test_shapes_are_torch_order_and_tensors_keep_the_order_of_the_file(tmp_path):
    second = Tensor("second", ne=(3, 2, 5), offset=0)
    file = gguf.read(
        write(tmp_path, build((), [Tensor("first", ne=(4,), offset=128), second], alignment=32)[:-16] + b"x" * 64)
    )
    assert list(file.tensors) == ["first", "second"] and file.tensors["second"].shape == (5, 2, 3)


@pytest.mark.parametrize("make", ["directory", "fifo", "socket", "device", "missing", "name with a zero", "loop"])
def test_only_regular_files_are_opened(make, tmp_path):
    path = tmp_path / "x"
    match make:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as unix:
                unix.bind(str(path))
        case "device":
            path = Path("/dev/zero")
        case "name with a zero":
            path = tmp_path / "a\0b"
        case "loop":
            path.symlink_to(path)
    with pytest.raises(GGUFError) as caught:
        gguf.read(path)
    assert caught.value.field == "file" and str(caught.value).isprintable()
    assert ("not a regular file" in str(caught.value)) == (make in ("directory", "fifo", "device"))


def test_a_link_to_a_regular_file_is_opened_and_no_file_handle_leaks(tmp_path):
    write(tmp_path, build(), "real.gguf")
    (tmp_path / "link.gguf").symlink_to("real.gguf")
    bad = write(tmp_path, build(version=9), "bad.gguf")
    gguf.read(tmp_path / "link.gguf")
    gc.collect()  # errors keep the frames that raised them alive
    handles = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        gguf.read(tmp_path / "link.gguf")
        refused(bad)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == handles


def getters(tmp_path: Path) -> gguf.GGUFFile:
    keys = [
        ("u8", "u8", 7), ("i64", "i64", -5), ("u64", "u64", HUGE), ("yes", "bool", 1), ("two", "bool", 2),
        ("half", "f32", 0.5), ("nan", "f64", float("nan")), ("inf", "f32", float("inf")), ("raw", "string", b"\xff"),
        ("word", "string", "hello"), ("ints", "i16[]", [1, -2]), ("floats", "f64[]", [0.5, 1.5]),
        ("words", "string[]", ["a", "b"]), ("bools", "bool[]", [1, 0]), ("odd bools", "bool[]", [1, 3]),
        ("with nan", "f32[]", [0, float("nan")]), ("raws", "string[]", ["a", b"\xff"]), ("empty", "f32[]", []),
    ]  # fmt: skip
    return gguf.read(write(tmp_path, build(keys)))


def test_getters(tmp_path):
    file = getters(tmp_path)
    assert file.integer("u8", 0, 7) == 7 and file.integer("i64", -5, 0) == -5 and file.integer("u64", 0, HUGE) == HUGE
    assert file.boolean("yes") is True and file.number("half", 0, 1) == 0.5 and file.string("word") == "hello"
    assert file.array("ints", "int") == [1, -2] and file.array("floats", "float") == [0.5, 1.5]
    assert file.array("words", "string") == ["a", "b"] and file.array("bools", "bool") == [True, False]
    assert file.array("empty", "float") == [] and file.array_length("words") == 2


@pytest.mark.parametrize("default", [None, 0, "x"])
def test_a_default_is_given_as_it_is_and_only_where_the_key_is_missing(default, tmp_path):
    file = getters(tmp_path)
    got = [file.string("no", default), file.boolean("no", default), file.array("no", "int", default)]
    assert [*got, file.integer("no", 1, 2, default), file.number("no", 1, 2, default)] == [default] * 5
    with pytest.raises(GGUFError, match="u8: is u8, expected string"):
        file.string("u8", default)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda f: f.string("no"), "no: missing key"),
        (lambda f: f.integer("no", 0, 1), "no: missing key"),
        (lambda f: f.array("no", "int"), "no: missing key"),
        (lambda f: f.array_length("no"), "no: missing key"),
        (lambda f: f.integer("u8", 8, 9), "u8: 7 is out of range, expected 8..9"),
        (lambda f: f.integer("i64", 0, 9), "i64: -5 is out of range, expected 0..9"),
        (lambda f: f.integer("yes", 0, 1), "yes: is bool, expected int"),
        (lambda f: f.integer("half", 0, 1), "half: is f32, expected int"),
        (lambda f: f.boolean("u8"), "u8: is u8, expected bool"),
        (lambda f: f.boolean("two"), "two: holds a bool that is neither 0 nor 1"),
        (lambda f: f.number("u8", 0, 9), "u8: is u8, expected float"),
        (lambda f: f.number("half", 1, 2), "half: 0.5 is out of range, expected a finite number in 1..2"),
        (lambda f: f.number("nan", 0, 1), "nan: nan is out of range, expected a finite number"),
        (lambda f: f.number("inf", 0, float("inf")), "inf: inf is out of range, expected a finite number"),
        (lambda f: f.string("raw"), "raw: a string is not UTF-8: invalid start byte at its byte 0"),
        (lambda f: f["raws"], "raws: a string is not UTF-8"),
        (lambda f: f["two"], "two: holds a bool"),
        (lambda f: f.string("words"), r"words: is array\[string\], expected string"),
        (lambda f: f.array("word", "string"), "word: is string, expected an array of strings"),
        (lambda f: f.array("ints", "float"), r"ints: is array\[i16\], expected an array of floats"),
        (lambda f: f.array("bools", "int"), r"bools: is array\[bool\], expected an array of ints"),
        (lambda f: f.array("odd bools", "bool"), "odd bools: holds a bool"),
        (lambda f: f.array("with nan", "float"), "with nan: element 1 is nan, expected finite numbers"),
        (lambda f: f.array_length("u8"), "u8: is u8, expected an array"),
    ],
)
def test_getters_refuse_by_name(call, words, tmp_path):
    with pytest.raises(GGUFError, match=words):
        call(getters(tmp_path))


def test_configs_of_the_handmade_pair(tmp_path):
    """Check that the readers accept these files, so that fuzzing them reaches every line."""
    assert config.read_text(gguf.read(write(tmp_path, build(TEXT))), "llama").rope.factor == 2
    assert config.read_vision(gguf.read(write(tmp_path, build(VISION)))).n_patches == 4


def test_more_heads_than_channels_are_refused(tmp_path):
    keys = [k for k in TEXT if not k[0].startswith("llama.attention.head") and k[0] != "llama.rope.dimension_count"]
    file = gguf.read(write(tmp_path, build([*keys, ("llama.attention.head_count", "u32", 33)])))
    with pytest.raises(GGUFError, match="llama.attention.head_count: 33 is more than the width 32"):
        config.read_text(file, "llama")


# Time and memory


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
