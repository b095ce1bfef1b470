"""Get typed values of a GGUF file's metadata. Errors name the key that is missing, mistyped or out of range."""

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from ..errors import GGUFError
from .cursor import ARRAY, KINDS, Cursor, Entry

Kind = Literal["int", "float", "bool", "string"]
FAMILY = {
    "int": {"u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"},
    "float": {"f32", "f64"},
    "bool": {"bool"},
    "string": {"string"},
}
T = TypeVar("T")


class Required:
    """The type of `REQUIRED`, so that None can be a default."""


REQUIRED = Required()
"""Stands for "no default": the key must be present."""


class Metadata(Mapping[str, Any]):
    """A mapping from keys to values, which are decoded at look-up: bool, int, float, str or lists of them.

    Getters return `default`, unchecked, if the key is missing. They raise GGUFError, which names the key, if it is
    mistyped, out of range, or missing without a default."""

    def __init__(self, path: Path, data: mmap.mmap, entries: dict[str, Entry]) -> None:
        self.path, self._data, self._entries = path, data, entries
        self.asked: dict[str, None] = {}
        """The keys that the getters were asked for so far, in order, missing ones too."""

    def __getitem__(self, key: str) -> Any:
        """Decode the value of `key`. Raises GGUFError for text that is not UTF-8 and a bool that is 2."""
        entry = self._entries[key]
        return Cursor(self._data, self.path, entry.offset).value(entry, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def describe(self, key: str) -> tuple[str, int]:
        """Return a value's type as text, such as "u32" or "array[string]", and its length (1 unless it is an array)."""
        entry = self._entries[key]
        name = KINDS[entry.kind]
        return (f"{name}[{KINDS[entry.element]}]" if entry.kind == ARRAY else name), entry.count

    @overload
    def string(self, key: str) -> str: ...
    @overload
    def string(self, key: str, default: T) -> str | T: ...
    def string(self, key: str, default: Any = REQUIRED) -> Any:
        return self._scalar(key, "string") if self._has(key, default) else default

    @overload
    def boolean(self, key: str) -> bool: ...
    @overload
    def boolean(self, key: str, default: T) -> bool | T: ...
    def boolean(self, key: str, default: Any = REQUIRED) -> Any:
        return self._scalar(key, "bool") if self._has(key, default) else default

    @overload
    def integer(self, key: str, low: int, high: int, *, layers: int = 0) -> int: ...
    @overload
    def integer(self, key: str, low: int, high: int, default: T, *, layers: int = 0) -> int | T: ...
    def integer(self, key: str, low: int, high: int, default: Any = REQUIRED, *, layers: int = 0) -> Any:
        """Get a whole number of any stored width in low..high, or `layers` of them that are all equal."""
        if not self._has(key, default):
            return default
        value = self._scalar(key, "int", layers)
        if not low <= value <= high:
            raise GGUFError(self.path, key, f"{value} is out of range, expected {low}..{high}")
        return value

    @overload
    def number(self, key: str, low: float, high: float, *, layers: int = 0) -> float: ...
    @overload
    def number(self, key: str, low: float, high: float, default: T, *, layers: int = 0) -> float | T: ...
    def number(self, key: str, low: float, high: float, default: Any = REQUIRED, *, layers: int = 0) -> Any:
        """Get a finite f32 or f64 in low..high, or `layers` of them that are all equal."""
        if not self._has(key, default):
            return default
        value = self._scalar(key, "float", layers)
        if not low <= value <= high or not math.isfinite(value):
            raise GGUFError(self.path, key, f"{value} is out of range, expected a finite number in {low:g}..{high:g}")
        return value

    @overload
    def array(self, key: str, kind: Kind) -> list[Any]: ...
    @overload
    def array(self, key: str, kind: Kind, default: T) -> list[Any] | T: ...
    def array(self, key: str, kind: Kind, default: Any = REQUIRED) -> Any:
        """Get the elements of an array; they must be of `kind`, and floats must be finite."""
        if not self._has(key, default):
            return default
        entry = self._entries[key]
        if entry.kind != ARRAY or KINDS[entry.element] not in FAMILY[kind]:
            raise GGUFError(self.path, key, f"is {self.describe(key)[0]}, expected an array of {kind}s")
        values = self[key]
        if kind == "float" and not all(map(math.isfinite, values)):
            index = next(i for i, value in enumerate(values) if not math.isfinite(value))
            raise GGUFError(self.path, key, f"element {index} is {values[index]}, expected finite numbers")
        return values

    def array_length(self, key: str) -> int:
        """Return the number of elements of an array, without decoding them."""
        self._has(key, REQUIRED)
        entry = self._entries[key]
        if entry.kind != ARRAY:
            raise GGUFError(self.path, key, f"is {KINDS[entry.kind]}, expected an array")
        return entry.count

    def _has(self, key: str, default: object) -> bool:
        """Say whether the key is present. Raises GGUFError if it is missing without a default."""
        self.asked[key] = None
        if key not in self._entries and default is REQUIRED:
            raise GGUFError(self.path, key, "missing key")
        return key in self._entries

    def _scalar(self, key: str, kind: Kind, layers: int = 0) -> Any:
        """Get a scalar of `kind`. Raises GGUFError for another type."""
        if layers and self._entries[key].kind == ARRAY:
            return self._of_layers(key, kind, layers)
        if KINDS[self._entries[key].kind] not in FAMILY[kind]:
            raise GGUFError(self.path, key, f"is {self.describe(key)[0]}, expected {kind}")
        return self[key]

    def _of_layers(self, key: str, kind: Kind, layers: int) -> Any:
        """Get the one value that an array repeats for each layer. Raises GGUFError if the values differ."""
        values = self.array(key, kind)
        if len(values) != layers:
            raise GGUFError(self.path, key, f"{len(values)} values, expected one for each of {layers} blocks")
        other = next((value for value in values if value != values[0]), None)
        if other is not None:
            raise GGUFError(self.path, key, f"{values[0]} for one block and {other} for another, expected one for all")
        return values[0]
