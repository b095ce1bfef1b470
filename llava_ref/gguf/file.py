"""GGUF files over a memory map: header, metadata and a table of tensors. Nothing is read that is not asked for.

Versions 2 and 3, little-endian. Format: ggml's docs/gguf.md; the limits beyond it stand in gguf_bytes.LIMITS.
A file that another program cuts short while it is mapped ends the process (SIGBUS), as with every memory map.
"""

import mmap
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import GGUFError
from .cursor import MAX_KEY, MAX_NAME, Cursor, Entry
from .metadata import REQUIRED, Metadata
from .types import BY_ID

__all__ = ["REQUIRED", "GGUFFile", "TensorView", "read"]

MAX_ALIGNMENT, MAX_PARTS = 1 << 20, 1024
# Without this, Linux refuses to map a private file that is larger than the memory. Python names the flag from 3.13 on.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
# O_NONBLOCK: a FIFO must not hang. Windows has neither of the first two, and needs the last.
OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor of a mapped file. Making a view reads nothing from disk; the map lives as long as its views."""

    name: str
    type: str  # "F16", "Q8_0", ...: a key of blocks.TYPES
    shape: tuple[int, ...]  # torch order, slowest axis first: GGUF's `ne` reversed
    data: memoryview  # the raw blocks


class GGUFFile(Metadata):
    """A GGUF file, or several that are one model: a mapping of its metadata, with getters, and its tensors."""

    def __init__(self, cursor: Cursor, version: int, entries: dict[str, Entry]) -> None:
        super().__init__(cursor.path, cursor.data, entries)
        self.version = version
        self.tensors: dict[str, TensorView] = {}  # in the order of the file


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A row of the tensor table. `offset` counts from where the data begins."""

    type: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read(path: str | os.PathLike[str]) -> GGUFFile:
    """Opens a GGUF file; the first of a split model (`...-00001-of-0000N.gguf`) opens the others too.

    GGUFError names the file and field of whatever is wrong. Only regular files are opened, and never written to."""
    cursor = _open(Path(path))
    first = _parse(cursor)
    if first.integer("split.count", 0, MAX_PARTS, 0) > 1:
        _join(first, cursor.left)
    return first


def _open(path: Path) -> Cursor:
    try:
        handle = os.open(path, OPEN)
    except (OSError, ValueError) as error:
        raise GGUFError(path, "file", getattr(error, "strerror", None) or str(error)) from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise GGUFError(path, "file", "not a regular file")
        if not found.st_size:
            raise GGUFError(path, "file", "is empty")
        return Cursor(_map(handle, found.st_size), path)
    except OSError as error:
        raise GGUFError(path, "file", f"cannot be mapped into memory: {error.strerror}") from None
    finally:
        os.close(handle)


def _map(handle: int, size: int) -> mmap.mmap:
    """Map a file privately: torch warns about arrays that it may not write to, and what is written stays here."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(handle, size, access=mmap.ACCESS_COPY)
    return mmap.mmap(handle, size, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _parse(cursor: Cursor) -> GGUFFile:
    """One file, split or not."""
    version, n_tensors, n_keys = _header(cursor)
    entries: dict[str, Entry] = {}
    for _ in range(n_keys):
        key = cursor.string("metadata key", MAX_KEY)
        if not key or key in entries:
            raise cursor.fail(key or "metadata key", "duplicate key" if key else "empty key")
        cursor.spend("characters in keys", len(key), key)
        kind = cursor.numbers("I", key)[0]
        entries[key] = cursor.step_over(kind, key)
    file = GGUFFile(cursor, version, entries)
    _read_tensors(cursor, file, n_tensors)
    return file


def _header(cursor: Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of keys."""
    magic = cursor.data[:4]
    if magic != b"GGUF":
        raise cursor.fail("magic", f"{magic!r}, expected b'GGUF': not a GGUF file")
    cursor.need(4, "magic")
    version = cursor.numbers("I", "version")[0]
    if version not in (2, 3):
        big = version in (2 << 24, 3 << 24)
        problem = "big-endian files are not supported" if big else f"{version} is not supported, expected 2 or 3"
        raise cursor.fail("version", problem)
    n_tensors, n_keys = cursor.numbers("QQ", "tensor count and metadata count")
    cursor.spend("tensors", n_tensors, "tensor count")
    cursor.spend("keys", n_keys, "metadata count")
    return version, n_tensors, n_keys


def _read_tensors(cursor: Cursor, file: GGUFFile, count: int) -> None:
    alignment = _alignment(file)
    table: dict[str, TensorInfo] = {}
    for _ in range(count):
        name = cursor.string("tensor name", MAX_NAME)
        if not name or name in table:
            raise cursor.fail(name or "tensor name", "duplicate tensor" if name else "empty name")
        table[name] = _tensor_info(cursor, name, alignment)
    start = -(-cursor.at // alignment) * alignment
    _check_layout(cursor, table, start)
    cursor.spend("bytes of header", cursor.at, "header")
    whole = memoryview(cursor.data)
    for name, info in table.items():
        begin = start + info.offset
        file.tensors[name] = TensorView(name, info.type, info.shape, whole[begin : begin + info.size])


def _alignment(file: GGUFFile) -> int:
    key = "general.alignment"
    value = file.integer(key, 1, MAX_ALIGNMENT, 32)
    if key in file and (file.describe(key)[0] != "u32" or value & (value - 1)):
        raise GGUFError(file.path, key, f"{value} stored as {file.describe(key)[0]}, expected a power of two as u32")
    return value


def _tensor_info(cursor: Cursor, name: str, alignment: int) -> TensorInfo:
    n_dims = cursor.numbers("I", name)[0]
    if n_dims > 4:
        raise cursor.fail(name, f"{n_dims} dimensions, expected 0..4")
    *ne, kind, offset = cursor.numbers(f"{n_dims}QIQ", name)
    block = BY_ID.get(kind)
    if block is None:
        raise cursor.fail(name, f"unknown tensor type {kind}")
    row = ne[0] if ne else 1
    if row % block.weights:
        raise cursor.fail(name, f"rows of {row} are not whole {block.name} blocks of {block.weights}")
    if offset % alignment:
        raise cursor.fail(name, f"offset {offset} is not a multiple of the alignment {alignment}")
    size = row // block.weights * block.bytes
    for axis in ne[1:]:
        size *= axis
    return TensorInfo(block.name, tuple(reversed(ne)), offset, size)


def _check_layout(cursor: Cursor, table: dict[str, TensorInfo], start: int) -> None:
    """All data within the file, none over another's. Gaps, any order and tensors without an element are allowed."""
    reached, before, end = 0, "", len(cursor.data)
    for name, info in sorted(table.items(), key=lambda item: (item[1].offset, item[1].size)):
        if info.offset < reached and info.size:
            raise cursor.fail(name, f"its data overlaps that of {before}")
        if start + info.offset + info.size > end:
            problem = f"{info.size} bytes of data expected at offset {start + info.offset}, but the file ends at {end}"
            raise cursor.fail(name, problem)
        if info.size:
            reached, before = info.offset + info.size, name


def _join(first: GGUFFile, left: dict[str, int]) -> None:
    """Adds the tensors of the other parts. They share the first one's limits; their own metadata is not kept.

    Keys, names and numbering as llama.cpp's gguf-split writes them: the first part is number 0 and named 00001."""
    parts = first.integer("split.count", 2, MAX_PARTS)
    match = re.fullmatch(r"(.*-)00001(-of-(\d{5})\.gguf)", first.path.name, re.DOTALL)
    if first.integer("split.no", 0, MAX_PARTS) != 0 or match is None or int(match[3]) != parts:
        raise GGUFError(
            first.path, "split.no", f"one of {parts} files, expected the first: ...-00001-of-{parts:05d}.gguf"
        )
    for number in range(1, parts):
        path = first.path.with_name(f"{match[1]}{number + 1:05d}{match[2]}")
        if not os.path.exists(path):
            raise GGUFError(path, "file", f"missing: part {number + 1} of {parts} of {first.path.name}")
        cursor = _open(path)
        cursor.left = left
        other = _parse(cursor)
        found = other.integer("split.no", 0, MAX_PARTS) + 1, other.integer("split.count", 0, MAX_PARTS)
        if found != (number + 1, parts):
            raise GGUFError(path, "split.no", f"is part {found[0]} of {found[1]}, expected {number + 1} of {parts}")
        twice = first.tensors.keys() & other.tensors.keys()
        if twice:
            raise GGUFError(path, min(twice), "duplicate tensor: an earlier part has it too")
        first.tensors |= other.tensors
    expected = first.integer("split.tensors.count", 0, 1 << 31)
    if len(first.tensors) != expected:
        raise GGUFError(first.path, "split.tensors.count", f"{expected}, but the parts hold {len(first.tensors)}")
