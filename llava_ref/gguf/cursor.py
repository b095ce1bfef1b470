"""Read the bytes of a GGUF header in order. Every length and count is checked against the bytes left before its use.

Layout: ggml's docs/gguf.md. All arithmetic is in Python integers; a count in the file allocates nothing.
"""

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import GGUFError

MAX_NAME, MAX_KEY, MAX_STRING = 63, 65_535, 1 << 26  # bytes; 63 is ggml's GGML_MAX_NAME less its zero
MAX_DEPTH = 4  # levels of arrays within arrays
NESTED = 32  # elements that a nested array counts for: stepping over one costs about as much
LIMITS = {  # for all files of one model together: no header takes more than about three seconds or 350 MB
    "keys": 65_536,
    "tensors": 65_536,
    "characters in keys": 1 << 24,
    "array elements": 1 << 23,
    "bytes of header": 1 << 28,
}

# fmt: off
SCALARS = {0: ("u8", "B"), 1: ("i8", "b"), 2: ("u16", "H"), 3: ("i16", "h"), 4: ("u32", "I"), 5: ("i32", "i"),
           6: ("f32", "f"), 7: ("bool", "?"), 10: ("u64", "Q"), 11: ("i64", "q"), 12: ("f64", "d")}
# fmt: on
BOOL, STRING, ARRAY = 7, 8, 9
KINDS = {id: name for id, (name, _) in SCALARS.items()} | {STRING: "string", ARRAY: "array"}


@dataclass(frozen=True, slots=True)
class Entry:
    """The offset of a value, its GGUF value type, and for an array the type and number of its elements."""

    kind: int
    offset: int
    element: int = -1
    count: int = 1


@dataclass(slots=True)
class Cursor:
    """A position in the mapped bytes. Each read moves it forward, and names in its GGUFError the `field` it was for."""

    data: mmap.mmap
    path: Path
    offset: int = 0
    left: dict[str, int] = field(default_factory=LIMITS.copy)  # the rest of LIMITS; files of one model share it

    @property
    def end(self) -> int:
        """Return the offset at which the header must end."""
        return min(len(self.data), self.left["bytes of header"])

    def fail(self, field: str, problem: str) -> GGUFError:
        """Return an error about `field` of this file."""
        return GGUFError(self.path, field, problem)

    def spend(self, what: str, count: int, field: str) -> None:
        """Take `count` from the limit on `what`. Raises GGUFError if fewer are left."""
        if count > self.left[what]:
            raise self.fail(field, f"{count} {what} exceed the limit, {LIMITS[what]} in all")
        self.left[what] -= count

    def need(self, count: int, field: str) -> int:
        """Step over `count` bytes; return the offset of the first. Raises GGUFError if fewer are left."""
        left = self.end - self.offset
        if count > left:
            limit = (
                "the file" if self.end == len(self.data) else f"the limit of {LIMITS['bytes of header']} for headers"
            )
            raise self.fail(
                field, f"{count} bytes expected at offset {self.offset}, but {limit} ends after {max(left, 0)}"
            )
        begin, self.offset = self.offset, self.offset + count
        return begin

    def numbers(self, codes: str, field: str) -> tuple[Any, ...]:
        """Read little-endian numbers, with `codes` as in `struct`."""
        codes = "<" + codes
        return struct.unpack_from(codes, self.data, self.need(struct.calcsize(codes), field))

    def string(self, field: str, limit: int = MAX_STRING) -> str:
        """Read a string of at most `limit` bytes. Raises GGUFError if it is longer or not UTF-8."""
        begin = self._step_over_string(field, limit)
        try:
            return self.data[begin : self.offset].decode()
        except UnicodeDecodeError as error:
            raise self.fail(field, f"a string is not UTF-8: {error.reason} at its byte {error.start}") from None

    def step_over(self, kind: int, field: str, depth: int = 0) -> Entry:
        """Step over a value of type `kind`, and check that the file holds all of it. Strings are not decoded."""
        element, count = kind, 1
        if kind == ARRAY:
            element, count = self.numbers("IQ", field)
            if element not in KINDS or depth == MAX_DEPTH:
                raise self.fail(field, f"an array at depth {depth + 1} of elements of type {element} is not supported")
            self.spend("array elements", count * (NESTED if element == ARRAY else 1), field)
        elif kind not in KINDS:
            raise self.fail(field, f"unknown value type {kind}, expected 0..12")
        begin = self.offset
        if element in SCALARS:
            self.need(count * struct.calcsize("<" + SCALARS[element][1]), field)
        elif kind == STRING:
            self._step_over_string(field, MAX_STRING)
        elif element == STRING:
            self._step_over_strings(count, field)
        else:
            self._at_least(count * 12, count, field)
            for _ in range(count):
                self.step_over(ARRAY, field, depth + 1)
        return Entry(kind, begin, element if kind == ARRAY else -1, count)

    def _step_over_string(self, field: str, limit: int) -> int:
        """Step over a 64-bit length and that many bytes of UTF-8; return the offset of the text."""
        length = self.numbers("Q", field)[0]
        if length > limit:
            raise self.fail(field, f"a string of {length} bytes, expected at most {limit}")
        return self.need(length, field)

    def _step_over_strings(self, count: int, field: str) -> None:
        """Step over `count` strings: the loop of `_step_over_string`, fast enough for a vocabulary."""
        self._at_least(count * 8, count, field)
        data, offset, last, unpack = self.data, self.offset, self.end - 8, struct.Struct("<Q").unpack_from
        for index in range(count):
            length = unpack(data, offset)[0] if offset <= last else 0
            offset += 8 + length
            if offset > last + 8 or length > MAX_STRING:
                raise self.fail(
                    field, f"string {index} of {count}, {length} bytes long, does not fit in the bytes left"
                )
        self.offset = offset

    def _at_least(self, needed: int, count: int, field: str) -> None:
        """Raise GGUFError if fewer than `needed` bytes are left for `count` elements."""
        if needed > self.end - self.offset:
            raise self.fail(field, f"{count} elements cannot fit in the {self.end - self.offset} bytes left")

    def value(self, entry: Entry, field: str) -> Any:
        """Decode the value at `entry`, from `step_over`: bool, int, float, str, or a list of these or of lists."""
        if entry.kind == STRING:
            return self.string(field)
        if entry.kind == ARRAY:
            return self._elements(entry.element, entry.count, field)
        return self._elements(entry.kind, 1, field)[0]

    def _array(self, field: str) -> list[Any]:
        """Decode an array inside an array: its type and length, then its elements."""
        element, count = self.numbers("IQ", field)
        return self._elements(element, count, field)

    def _elements(self, element: int, count: int, field: str) -> list[Any]:
        """Decode `count` elements. Raises GGUFError for text that is not UTF-8 and a bool that is neither 0 nor 1."""
        if element == STRING:
            return [self.string(field) for _ in range(count)]
        if element == ARRAY:
            return [self._array(field) for _ in range(count)]
        if element == BOOL and self.data[self.offset : self.offset + count].translate(None, b"\0\1"):
            raise self.fail(field, "holds a bool that is neither 0 nor 1")
        return list(self.numbers(f"{count}{SCALARS[element][1]}", field))
