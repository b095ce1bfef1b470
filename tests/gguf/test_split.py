"""Models in several files, as llama.cpp's gguf-split writes them."""

from pathlib import Path

import numpy as np
import pytest

from llava_ref import gguf
from llava_ref.errors import GGUFError
from llava_ref.gguf.cursor import LIMITS
from llava_ref.ops import numpy_quants as quants

from ..support.gguf_files import Key, Tensor, build, write

A, B, C = (Tensor(name, "F32", (i + 2,)) for i, name in enumerate("abc"))


def part(folder: Path, no: int, tensors: list[Tensor], *more: Key, count: int = 3, total: int = 3) -> Path:
    """Part `no` (from 0), with the keys' types as gguf-split writes them."""
    keys = [("split.no", "u16", no), ("split.count", "u16", count), ("split.tensors.count", "i32", total)]
    return write(folder, build([*keys, *more], tensors), f"model-{no + 1:05}-of-00003.gguf")


def parts(folder: Path) -> Path:
    first = part(folder, 0, [A], ("general.name", "string", "one"))
    part(folder, 1, [B])
    part(folder, 2, [C])
    return first


def test_the_first_part_opens_the_rest(tmp_path):
    file = gguf.read(parts(tmp_path))
    assert list(file.tensors) == ["a", "b", "c"] and file.string("general.name") == "one"
    whole = gguf.read(write(tmp_path, build((), [A, B, C])))
    for name, view in whole.tensors.items():
        np.testing.assert_array_equal(quants.dequantize(file.tensors[name]), quants.dequantize(view))


def test_the_first_part_may_hold_no_tensor(tmp_path):
    parts(tmp_path)
    file = gguf.read(part(tmp_path, 0, [], total=2))
    assert list(file.tensors) == ["b", "c"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_split_of_one_is_a_whole_file(count, tmp_path):
    file = gguf.read(write(tmp_path, build([("split.no", "u16", 0), ("split.count", "u16", count)], [A])))
    assert list(file.tensors) == ["a"]


@pytest.mark.parametrize(
    "spoil, named, words",
    [
        (lambda folder: (folder / "model-00002-of-00003.gguf").unlink(), 2, "file: missing: part 2 of 3"),
        (lambda folder: part(folder, 1, [A]), 2, "a: duplicate tensor"),
        (lambda folder: part(folder, 2, [B]), 3, "b: duplicate tensor"),
        (lambda folder: part(folder, 1, [B], count=2), 2, "split.no: is part 2 of 2, expected 2 of 3"),
        (lambda folder: write(folder, build([("split.no", "u16", 2), ("split.count", "u16", 3)]),
                              "model-00002-of-00003.gguf"), 2, "split.no: is part 3 of 3, expected 2 of 3"),
        (lambda folder: write(folder, build(), "model-00003-of-00003.gguf"), 3, "split.no: missing key"),
        (lambda folder: write(folder, b"GGUF", "model-00003-of-00003.gguf"), 3, "version"),
        (lambda folder: part(folder, 2, []), 1, "split.tensors.count: 3, but the parts hold 2"),
        (lambda folder: part(folder, 0, [A], total=4), 1, "split.tensors.count: 4, but the parts hold 3"),
        (lambda folder: part(folder, 0, [A], total=-1), 1, "split.tensors.count: -1 is out of range"),
        (lambda folder: part(folder, 0, [A], count=4), 1, "split.no: one of 4 files, expected the first"),
        (lambda folder: part(folder, 0, [A], count=65_535), 1, "split.count: 65535 is out of range"),
    ],
)  # fmt: skip
def test_what_is_missing_or_does_not_fit_is_named(spoil, named, words, tmp_path):
    first = parts(tmp_path)
    spoil(tmp_path)
    with pytest.raises(GGUFError) as caught:
        gguf.read(first)
    assert str(caught.value).startswith(str(tmp_path / f"model-0000{named}-of-00003.gguf") + ": " + words)


@pytest.mark.parametrize("name", ["model-00002-of-00003.gguf", "renamed.gguf"])
def test_another_part_or_name_says_which_to_open(name, tmp_path):
    first = parts(tmp_path)
    if name == "renamed.gguf":
        first.rename(tmp_path / name)
    with pytest.raises(GGUFError, match=r"split.no: one of 3 files, expected the first: \.\.\.-00001-of-00003\.gguf"):
        gguf.read(tmp_path / name)


def test_all_parts_share_the_greatest_size_of_a_header(tmp_path, monkeypatch):
    first = parts(tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    monkeypatch.setitem(LIMITS, "bytes of header", sum(sizes))
    gguf.read(first)
    monkeypatch.setitem(LIMITS, "bytes of header", max(sizes) + 50)
    with pytest.raises(GGUFError, match=r"model-00002-of-00003.gguf: .* a header may take ends after"):
        gguf.read(first)


@pytest.mark.parametrize("what, enough", [("tensors", 3), ("keys", 10), ("characters in keys", 126)])
def test_all_parts_share_the_limits_of_one_file(what, enough, tmp_path, monkeypatch):
    first = parts(tmp_path)
    monkeypatch.setitem(LIMITS, what, enough)
    gguf.read(first)
    monkeypatch.setitem(LIMITS, what, enough - 1)
    with pytest.raises(GGUFError, match=rf"model-00003-of-00003.gguf: .* over the limit, {enough - 1} in all"):
        gguf.read(first)
