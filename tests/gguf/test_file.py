"""Test the GGUF reader: files it must read, and files it must refuse by field."""

import gc
import os
import socket
import struct
from pathlib import Path

import gguf as package
import numpy as np
import pytest

from llava_ref.errors import GGUFError
from llava_ref.gguf import file as gguf
from llava_ref.models import config
from llava_ref.ops import numpy_quants as quants

from ..support.gguf_files import ODD, TEXT, VISION, Tensor, build, good_files, text, write
from .small_files import HUGE, ROW, THREE, refused

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


def test_configs_of_the_handmade_pair(tmp_path):
    """Check that the readers accept these files, so that fuzzing them reaches every line."""
    assert config.read_text(gguf.read(write(tmp_path, build(TEXT))), "llama").rope.factor == 2
    assert config.read_vision(gguf.read(write(tmp_path, build(VISION)))).n_patches == 4


def test_more_heads_than_channels_are_refused(tmp_path):
    keys = [k for k in TEXT if not k[0].startswith("llama.attention.head") and k[0] != "llama.rope.dimension_count"]
    file = gguf.read(write(tmp_path, build([*keys, ("llama.attention.head_count", "u32", 33)])))
    with pytest.raises(GGUFError, match="llama.attention.head_count: 33 is more than the width 32"):
        config.read_text(file, "llama")
