"""GGUF files: header, metadata and tensor table over a memory map. Nothing is read that is not asked for.

Versions 2 and 3, little-endian. Every count, length, offset and size is compared with the bytes of the file, in Python
integers, before it is used; a count allocates nothing. Format: ggml's docs/gguf.md; limits beyond it are named below.
A file cut short while it is mapped ends the process (SIGBUS), as with every memory map.
"""

import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from .blocks import BY_ID
from .errors import GGUFError, printable

MAX_KEYS, MAX_TENSORS = 65_536, 65_536
MAX_STRINGS = 4_194_304  # in all arrays of strings together: about a second's walk
MAX_NAME, MAX_KEY, MAX_STRING = 63, 65_535, 1 << 26  # bytes; 63 is ggml's GGML_MAX_NAME less its zero
MAX_ALIGNMENT, MAX_DEPTH = 1 << 20, 4

# fmt: off
SCALARS = {0: ("u8", "B"), 1: ("i8", "b"), 2: ("u16", "H"), 3: ("i16", "h"), 4: ("u32", "I"), 5: ("i32", "i"),
           6: ("f32", "f"), 7: ("bool", "?"), 10: ("u64", "Q"), 11: ("i64", "q"), 12: ("f64", "d")}
# fmt: on
STRING, ARRAY = 8, 9
KINDS = {id: name for id, (name, _) in SCALARS.items()} | {STRING: "string", ARRAY: "array"}
FAMILY = {"int": {0, 1, 2, 3, 4, 5, 10, 11}, "float": {6, 12}, "bool": {7}, "string": {STRING}}
Kind = Literal["int", "float", "bool", "string"]
T = TypeVar("T")


class Required:
    """The type of `REQUIRED`."""


REQUIRED = Required()
"""Default of a getter that has none: the key must be there."""


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor of a mapped file. Making a view reads nothing from disk."""

    name: str
    type: str  # "F16", "Q8_0", ...: a key of blocks.TYPES
    shape: tuple[int, ...]  # torch order, slowest axis first: GGUF's `ne` reversed
    data: memoryview  # the raw blocks


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a value lies. `kind` is a GGUF value type; for an array, `element` its elements' and `count` how many."""

    kind: int
    at: int
    element: int = -1
    count: int = 1


class GGUFFile(Mapping[str, Any]):
    """A GGUF file, or several that are one model: a mapping from metadata keys to values, decoded when looked up.

    Getters raise GGUFError naming the key when it is missing (and has no default), mistyped or out of range."""

    def __init__(self, path: Path, version: int, data: mmap.mmap, entries: dict[str, Entry]) -> None:
        self.path, self.version = path, version
        self.tensors: dict[str, TensorView] = {}
        self._data, self._entries = data, entries

    def __getitem__(self, key: str) -> Any:
        return self._value(key, self._entries[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def describe(self, key: str) -> tuple[str, int]:
        """The value's type as text, and for an array its length (1 for anything else)."""
        entry = self._entries[key]
        name = KINDS[entry.kind]
        return (f"{name}[{KINDS[entry.element]}]" if entry.kind == ARRAY else name), entry.count

    @overload
    def string(self, key: str) -> str: ...
    @overload
    def string(self, key: str, default: T) -> str | T: ...
    def string(self, key: str, default: Any = REQUIRED) -> Any:
        return self._scalar(key, "string", default)

    @overload
    def boolean(self, key: str) -> bool: ...
    @overload
    def boolean(self, key: str, default: T) -> bool | T: ...
    def boolean(self, key: str, default: Any = REQUIRED) -> Any:
        return self._scalar(key, "bool", default)

    @overload
    def integer(self, key: str, low: int, high: int) -> int: ...
    @overload
    def integer(self, key: str, low: int, high: int, default: T) -> int | T: ...
    def integer(self, key: str, low: int, high: int, default: Any = REQUIRED) -> Any:
        """A whole number of any stored width in low..high."""
        return self._in_range(key, "int", low, high, default)

    @overload
    def number(self, key: str, low: float, high: float) -> float: ...
    @overload
    def number(self, key: str, low: float, high: float, default: T) -> float | T: ...
    def number(self, key: str, low: float, high: float, default: Any = REQUIRED) -> Any:
        """A finite f32 or f64 in low..high."""
        return self._in_range(key, "float", low, high, default)

    @overload
    def array(self, key: str, kind: Kind) -> list[Any]: ...
    @overload
    def array(self, key: str, kind: Kind, default: T) -> list[Any] | T: ...
    def array(self, key: str, kind: Kind, default: Any = REQUIRED) -> Any:
        """The elements, which must be of `kind`."""
        entry = self._entry(key, default)
        if entry is None:
            return default
        if entry.kind != ARRAY or entry.element not in FAMILY[kind]:
            raise GGUFError(self.path, key, f"is {self.describe(key)[0]}, expected an array of {kind}s")
        return self._value(key, entry)

    def array_length(self, key: str) -> int:
        """How many elements the array has, without decoding them."""
        entry = self._entry(key, REQUIRED)
        assert entry is not None
        if entry.kind != ARRAY:
            raise GGUFError(self.path, key, f"is {KINDS[entry.kind]}, expected an array")
        return entry.count

    def _entry(self, key: str, default: object) -> Entry | None:
        if key not in self._entries and default is REQUIRED:
            raise GGUFError(self.path, key, "missing key")
        return self._entries.get(key)

    def _scalar(self, key: str, kind: Kind, default: Any) -> Any:
        entry = self._entry(key, default)
        if entry is None:
            return default
        if entry.kind not in FAMILY[kind]:
            raise GGUFError(self.path, key, f"is {self.describe(key)[0]}, expected {kind}")
        return self._value(key, entry)

    def _in_range(self, key: str, kind: Kind, low: float, high: float, default: Any) -> Any:
        value = self._scalar(key, kind, default)
        if key in self._entries and not low <= value <= high:  # NaN is in no range
            raise GGUFError(self.path, key, f"{value} is out of range, expected {low:g}..{high:g}")
        return value

    def _value(self, key: str, entry: Entry) -> Any:
        cursor = Cursor(self._data, self.path, entry.at)
        return cursor.value(entry.kind, key) if entry.kind != ARRAY else cursor.elements(entry, key)


class Cursor:
    """Reads forward through the mapped bytes; every read says what it is for and is checked first."""

    def __init__(self, data: mmap.mmap, path: Path, at: int = 0) -> None:
        self.data, self.path, self.at, self.end, self.strings = data, path, at, len(data), 0

    def fail(self, field: str, problem: str) -> GGUFError:
        return GGUFError(self.path, field, problem)

    def need(self, count: int, field: str) -> int:
        """Steps over `count` bytes and gives where they begin."""
        if count > self.end - self.at:
            left = self.end - self.at
            raise self.fail(field, f"the file ends here: {count} bytes at offset {self.at} expected, {left} left")
        begin, self.at = self.at, self.at + count
        return begin

    def scalar(self, code: str, field: str) -> Any:
        size = struct.calcsize("<" + code)
        if code == "?" and self.data[self.at : self.at + 1] not in (b"\0", b"\1", b""):
            raise self.fail(field, f"a bool is {self.data[self.at]}, expected 0 or 1")
        return struct.unpack_from("<" + code, self.data, self.need(size, field))[0]

    def string(self, field: str, limit: int = MAX_STRING) -> str:
        length = self.scalar("Q", field)
        if length > limit:
            raise self.fail(field, f"a string of {length} bytes, expected at most {limit}")
        begin = self.need(length, field)
        try:
            return self.data[begin : begin + length].decode()
        except UnicodeDecodeError as error:
            raise self.fail(field, f"a string is not UTF-8: {error.reason} at its byte {error.start}") from None

    def value(self, kind: int, field: str) -> Any:
        return self.string(field) if kind == STRING else self.scalar(SCALARS[kind][1], field)

    def elements(self, entry: Entry, field: str) -> list[Any]:
        if entry.element == ARRAY:
            return [self.elements(self.entry(ARRAY, field), field) for _ in range(entry.count)]
        if entry.element == STRING:
            return [self.string(field) for _ in range(entry.count)]
        code = SCALARS[entry.element][1]
        begin = self.need(entry.count * struct.calcsize("<" + code), field)
        return list(struct.unpack_from(f"<{entry.count}{code}", self.data, begin))

    def entry(self, kind: int, field: str, depth: int = 1) -> Entry:
        """Steps over one value of type `kind`, checking that all of it is there."""
        begin = self.at
        if kind in SCALARS:
            self.scalar(SCALARS[kind][1], field)
            return Entry(kind, begin)
        if kind == STRING:
            self.string(field)
            return Entry(kind, begin)
        if kind != ARRAY:
            raise self.fail(field, f"unknown value type {kind}, expected 0..12")
        element, count = self.scalar("I", field), self.scalar("Q", field)
        inside = Entry(ARRAY, self.at, element, count)
        self.step_over(inside, field, depth)
        return inside

    def step_over(self, array: Entry, field: str, depth: int) -> None:
        element, count = array.element, array.count
        if element in SCALARS:
            self.need(count * struct.calcsize("<" + SCALARS[element][1]), field)
        elif element == STRING:
            self.step_over_strings(count, field)
        elif element == ARRAY and depth < MAX_DEPTH:
            self.count(count, 12, field)
            for _ in range(count):
                self.entry(ARRAY, field, depth + 1)
        else:
            raise self.fail(field, f"array elements of type {element} at depth {depth} are not supported")

    def step_over_strings(self, count: int, field: str) -> None:
        self.count(count, 8, field)
        data, at, end, unpack = self.data, self.at, self.end, struct.Struct("<Q").unpack_from
        for index in range(count):
            if end - at < 8:
                raise self.fail(field, f"the file ends within string {index} of {count}")
            length = unpack(data, at)[0]
            if length > end - at - 8 or length > MAX_STRING:
                raise self.fail(field, f"string {index} of {count} is {length} bytes long, past the end of the file")
            at += 8 + length
        self.at = at

    def count(self, count: int, at_least: int, field: str) -> None:
        """`count` things of `at_least` bytes each must fit what is left; strings and arrays are counted in all."""
        if count * at_least > self.end - self.at:
            raise self.fail(field, f"{count} elements do not fit the {self.end - self.at} bytes left")
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise self.fail(field, f"over {MAX_STRINGS} strings in arrays")


def read(path: str | os.PathLike[str]) -> GGUFFile:
    """Opens a GGUF file; the first of a split model (`...-00001-of-0000N.gguf`) opens the others too.

    GGUFError names the file and field of whatever is wrong. Only regular files are opened."""
    first = read_one(Path(path))
    parts = first.integer("split.count", 0, 65_535, 0)
    return _join(first, parts) if parts > 1 else first


def read_one(path: Path) -> GGUFFile:
    """One file, split or not."""
    cursor = Cursor(_map(path), path)
    version, n_tensors, n_keys = _header(cursor)
    entries: dict[str, Entry] = {}
    for _ in range(n_keys):
        key = cursor.string("metadata key", MAX_KEY)
        if not key or key in entries:
            raise cursor.fail(printable(key, 100) or "metadata key", "duplicate key" if key else "empty key")
        entries[key] = cursor.entry(cursor.scalar("I", key), key)
    file = GGUFFile(path, version, cursor.data, entries)
    _read_tensors(cursor, file, n_tensors)
    return file


def _map(path: Path) -> mmap.mmap:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # O_NONBLOCK: a FIFO must not hang
    except (OSError, ValueError) as error:
        raise GGUFError(path, "file", getattr(error, "strerror", None) or str(error)) from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise GGUFError(path, "file", "not a regular file")
        if found.st_size < 24:
            raise GGUFError(path, "header", f"{found.st_size} bytes, expected at least 24")
        # A private map: arrays over it count as writable, which torch asks for, and the file is never written.
        return mmap.mmap(handle, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(handle)


def _header(cursor: Cursor) -> tuple[int, int, int]:
    magic = cursor.data[cursor.need(4, "magic") : 4]
    if magic != b"GGUF":
        raise cursor.fail("magic", f"{magic!r}, expected b'GGUF': not a GGUF file")
    version = cursor.scalar("I", "version")
    if version not in (2, 3):
        big = version in (2 << 24, 3 << 24)
        problem = "big-endian files are not supported" if big else f"{version} is not supported, expected 2 or 3"
        raise cursor.fail("version", problem)
    n_tensors, n_keys = cursor.scalar("Q", "tensor count"), cursor.scalar("Q", "metadata count")
    for what, count, most in (("tensor count", n_tensors, MAX_TENSORS), ("metadata count", n_keys, MAX_KEYS)):
        if count > most:
            raise cursor.fail(what, f"{count}, expected at most {most}")
    return version, n_tensors, n_keys


def _read_tensors(cursor: Cursor, file: GGUFFile, count: int) -> None:
    alignment = 32
    if "general.alignment" in file:
        alignment = file.integer("general.alignment", 1, MAX_ALIGNMENT)
        if file.describe("general.alignment")[0] != "u32" or alignment & (alignment - 1):
            raise cursor.fail("general.alignment", f"{alignment}, expected a power of two stored as u32")
    table: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.string("tensor name", MAX_NAME)
        if not name or name in table:
            raise cursor.fail(name or "tensor name", "duplicate tensor" if name else "empty name")
        table[name] = _tensor_info(cursor, name, alignment)
    start = -(-cursor.at // alignment) * alignment
    _check_layout(cursor, table, start)
    whole = memoryview(cursor.data)
    for name, (kind, shape, offset, size) in table.items():
        file.tensors[name] = TensorView(name, kind, shape, whole[start + offset : start + offset + size])


def _tensor_info(cursor: Cursor, name: str, alignment: int) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, offset and size in bytes."""
    n_dims = cursor.scalar("I", name)
    if not 1 <= n_dims <= 4:
        raise cursor.fail(name, f"{n_dims} dimensions, expected 1..4")
    ne = [cursor.scalar("Q", name) for _ in range(n_dims)]
    kind, offset = cursor.scalar("I", name), cursor.scalar("Q", name)
    block = BY_ID.get(kind)
    if block is None:
        raise cursor.fail(name, f"unknown tensor type {kind}")
    if 0 in ne:
        raise cursor.fail(name, f"shape {ne[::-1]} has an axis of 0")
    if ne[0] % block.weights:
        raise cursor.fail(name, f"rows of {ne[0]} are not whole {block.name} blocks of {block.weights}")
    if offset % alignment:
        raise cursor.fail(name, f"offset {offset} is not a multiple of the alignment {alignment}")
    size = block.bytes
    for axis in (ne[0] // block.weights, *ne[1:]):
        size *= axis
    return block.name, tuple(reversed(ne)), offset, size


def _check_layout(cursor: Cursor, table: dict[str, tuple[str, tuple[int, ...], int, int]], start: int) -> None:
    """All data within the file, none over another's."""
    reached, before = 0, ""
    for name, (_, _, offset, size) in sorted(table.items(), key=lambda item: item[1][2]):
        if offset < reached:
            raise cursor.fail(name, f"its data overlaps that of {before}")
        if start + offset + size > cursor.end:
            problem = f"{size} bytes at offset {start + offset} expected, but the file has {cursor.end}"
            raise cursor.fail(name, f"the file ends before its data: {problem}")
        reached, before = offset + size, name


def _join(first: GGUFFile, parts: int) -> GGUFFile:
    """The first file with the tensors of all. Keys: llama.cpp's gguf-split (split.no, .count, .tensors.count)."""
    match = re.fullmatch(r"(.*-)00001(-of-(\d{5})\.gguf)", first.path.name, re.DOTALL)
    if first.integer("split.no", 0, 65_535) != 0 or match is None or int(match[3]) != parts:
        raise GGUFError(first.path, "split.no", f"not the first of {parts} files: open ...-00001-of-{parts:05d}.gguf")
    for number in range(1, parts):
        other = read_one(first.path.with_name(f"{match[1]}{number + 1:05d}{match[2]}"))
        if other.integer("split.no", 0, 65_535) != number or other.integer("split.count", 0, 65_535) != parts:
            raise GGUFError(other.path, "split.no", f"expected part {number} of {parts}")
        twice = first.tensors.keys() & other.tensors.keys()
        if twice:
            raise GGUFError(other.path, min(twice), "tensor stands in an earlier part too")
        first.tensors.update(other.tensors)
    expected = first.integer("split.tensors.count", 0, MAX_TENSORS)
    if len(first.tensors) != expected:
        raise GGUFError(first.path, "split.tensors.count", f"{expected}, but the parts hold {len(first.tensors)}")
    return first
