"""Test the getters of metadata: values, defaults, and errors that name the key."""

from pathlib import Path

import pytest

from llava_ref.errors import GGUFError
from llava_ref.gguf import file as gguf

from ..support.gguf_files import build, write
from .small_files import HUGE


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
