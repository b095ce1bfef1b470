"""Test models split over several files, as llama.cpp's gguf-split writes them."""

from pathlib import Path

import numpy as np
import pytest

from llava_ref import gguf
from llava_ref.errors import GGUFError
from llava_ref.gguf.cursor import LIMITS
from llava_ref.ops import numpy_quants as quants

from ..support.gguf_files import Key, Tensor, build, write

A, B, C = (Tensor(name, "F32", (i + 2,)) for i, name in enumerate("abc"))


def split(folder: Path, no: int, tensors: list[Tensor], *more: Key, count: int = 3, total: int = 3) -> Path:
    """Write split number `no`, counted from 0, with keys of the types that gguf-split writes."""
    keys = [("split.no", "u16", no), ("split.count", "u16", count), ("split.tensors.count", "i32", total)]
    return write(folder, build([*keys, *more], tensors), f"model-{no + 1:05}-of-00003.gguf")


def splits(folder: Path) -> Path:
    """Write a model of three splits; return the path of the first."""
    first = split(folder, 0, [A], ("general.name", "string", "one"))
    split(folder, 1, [B])
    split(folder, 2, [C])
    return first


def test_the_first_split_opens_the_others(tmp_path):
    file = gguf.read(splits(tmp_path))
    assert list(file.tensors) == ["a", "b", "c"] and file.string("general.name") == "one"
    whole = gguf.read(write(tmp_path, build((), [A, B, C])))
    for name, view in whole.tensors.items():
        np.testing.assert_array_equal(quants.dequantize(file.tensors[name]), quants.dequantize(view))


def test_the_first_split_may_hold_no_tensor(tmp_path):
    splits(tmp_path)
    file = gguf.read(split(tmp_path, 0, [], total=2))
    assert list(file.tensors) == ["b", "c"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_model_of_one_split_is_a_plain_file(count, tmp_path):
    file = gguf.read(write(tmp_path, build([("split.no", "u16", 0), ("split.count", "u16", count)], [A])))
    assert list(file.tensors) == ["a"]


@pytest.mark.parametrize(
    "spoil, named, words",
    [
        (lambda folder: (folder / "model-00002-of-00003.gguf").unlink(), 2, "file: missing: split 2 of 3"),
        (lambda folder: split(folder, 1, [A]), 2, "a: duplicate tensor"),
        (lambda folder: split(folder, 2, [B]), 3, "b: duplicate tensor"),
        (lambda folder: split(folder, 1, [B], count=2), 2, "split.no: is split 2 of 2, expected 2 of 3"),
        (lambda folder: write(folder, build([("split.no", "u16", 2), ("split.count", "u16", 3)]),
                              "model-00002-of-00003.gguf"), 2, "split.no: is split 3 of 3, expected 2 of 3"),
        (lambda folder: write(folder, build(), "model-00003-of-00003.gguf"), 3, "split.no: missing key"),
        (lambda folder: write(folder, b"GGUF", "model-00003-of-00003.gguf"), 3, "version"),
        (lambda folder: split(folder, 2, []), 1, "split.tensors.count: 3, but the splits hold 2"),
        (lambda folder: split(folder, 0, [A], total=4), 1, "split.tensors.count: 4, but the splits hold 3"),
        (lambda folder: split(folder, 0, [A], total=-1), 1, "split.tensors.count: -1 is out of range"),
        (lambda folder: split(folder, 0, [A], count=4), 1, "split.no: one of 4 files, expected the first"),
        (lambda folder: split(folder, 0, [A], count=65_535), 1, "split.count: 65535 is out of range"),
    ],
)  # fmt: skip
def test_an_error_names_the_split_that_is_missing_or_does_not_fit(spoil, named, words, tmp_path):
    first = splits(tmp_path)
    spoil(tmp_path)
    with pytest.raises(GGUFError) as caught:
        gguf.read(first)
    assert str(caught.value).startswith(str(tmp_path / f"model-0000{named}-of-00003.gguf") + ": " + words)


@pytest.mark.parametrize("name", ["model-00002-of-00003.gguf", "renamed.gguf"])
def test_another_split_or_name_says_which_file_to_open(name, tmp_path):
    first = splits(tmp_path)
    if name == "renamed.gguf":
        first.rename(tmp_path / name)
    with pytest.raises(GGUFError, match=r"split.no: one of 3 files, expected the first: \.\.\.-00001-of-00003\.gguf"):
        gguf.read(tmp_path / name)


def test_all_splits_share_the_limit_on_header_bytes(tmp_path, monkeypatch):
    first = splits(tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    monkeypatch.setitem(LIMITS, "bytes of header", sum(sizes))
    gguf.read(first)
    monkeypatch.setitem(LIMITS, "bytes of header", max(sizes) + 50)
    with pytest.raises(GGUFError, match=r"model-00002-of-00003.gguf: .* limit of \d+ for headers ends after"):
        gguf.read(first)


@pytest.mark.parametrize("what, enough", [("tensors", 3), ("keys", 10), ("characters in keys", 126)])
def test_all_splits_share_the_limits_of_one_file(what, enough, tmp_path, monkeypatch):
    first = splits(tmp_path)
    monkeypatch.setitem(LIMITS, what, enough)
    gguf.read(first)
    monkeypatch.setitem(LIMITS, what, enough - 1)
    with pytest.raises(GGUFError, match=rf"model-00003-of-00003.gguf: .* exceed the limit, {enough - 1} in all"):
        gguf.read(first)
