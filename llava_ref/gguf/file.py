"""Open GGUF files over a memory map: header, metadata and the table of tensors. Data are read when they are used.

Versions 2 and 3, little-endian. The format is that of ggml's docs/gguf.md; the limits beyond it are in cursor.LIMITS.
If another program truncates a file while it is mapped, this process ends (SIGBUS), as with every memory map.
"""

import hashlib
import mmap
import os
import re
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import GGUFError
from .cursor import MAX_KEY, MAX_NAME, Cursor, Entry
from .metadata import REQUIRED, Metadata
from .types import BY_ID

__all__ = ["REQUIRED", "GGUFFile", "TensorView", "hashes", "read"]

MAX_ALIGNMENT, MAX_SPLITS = 1 << 20, 1024
FIRST = re.compile(r"(.*-)00001(-of-(\d{5})\.gguf)", re.DOTALL)  # the name of the first file of a split model
# Without this flag Linux refuses to map a private file larger than the memory. Python has a name for it from 3.13 on.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
# O_NONBLOCK keeps a FIFO from blocking. Windows lacks it and O_CLOEXEC, and needs O_BINARY.
OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor of a mapped file. Making a view reads nothing from disk; the map lives as long as its views."""

    name: str
    type: str  # "F16", "Q8_0", ...: a key of types.TYPES
    shape: tuple[int, ...]  # torch order, slowest axis first: GGUF's `ne` reversed
    data: memoryview  # the raw blocks


class GGUFFile(Metadata):
    """A GGUF file, or a model split over several: a mapping of its metadata, with getters, and its tensors."""

    def __init__(self, cursor: Cursor, version: int, entries: dict[str, Entry]) -> None:
        super().__init__(cursor.path, cursor.data, entries)
        self.version = version
        self.paths = [cursor.path]  # of a split model every file
        self.tensors: dict[str, TensorView] = {}  # in file order

    def __repr__(self) -> str:
        return f"<GGUFFile {self.path.name!r}: {len(self)} keys, {len(self.tensors)} tensors>"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A row of the tensor table. `offset` counts from the first byte of tensor data."""

    type: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file; the first file of a split model (`...-00001-of-0000N.gguf`) opens the others too.

    Only regular files are opened, and none is written to. Raises GGUFError, which names the file and the field."""
    cursor = _open(Path(path))
    first = _parse(cursor)
    if first.integer("split.count", 0, MAX_SPLITS, 0) > 1:
        _join(first, cursor.left)
    return first


def hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of files; after the first one of a split model stand the others.

    Raises GGUFError if one of these is missing or does not fit."""
    digests = {}
    for path in paths:
        for part in read(path).paths if FIRST.fullmatch(path.name) else [path]:
            with part.open("rb") as file:
                digests[part] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _open(path: Path) -> Cursor:
    """Map a file. Raises GGUFError if it cannot be opened or mapped, is empty or is not a regular file."""
    try:
        handle = os.open(path, OPEN)
    except (OSError, ValueError) as error:
        raise GGUFError(path, "file", getattr(error, "strerror", None) or str(error)) from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise GGUFError(path, "file", "not a regular file")
        if not status.st_size:
            raise GGUFError(path, "file", "is empty")
        return Cursor(_map(handle, status.st_size), path)
    except OSError as error:
        raise GGUFError(path, "file", f"cannot be mapped into memory: {error.strerror}") from None
    finally:
        os.close(handle)


def _map(handle: int, size: int) -> mmap.mmap:
    """Map a file privately. Torch warns about read-only arrays, and writes to a private map never reach the file."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(handle, size, access=mmap.ACCESS_COPY)
    return mmap.mmap(handle, size, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _parse(cursor: Cursor) -> GGUFFile:
    """Parse one file, whether or not it is one of several."""
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
    """Read the version, the number of tensors and the number of keys."""
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
    """Read the table of `count` tensors, and put a view of each into `file.tensors`."""
    alignment = _alignment(file)
    table: dict[str, TensorInfo] = {}
    for _ in range(count):
        name = cursor.string("tensor name", MAX_NAME)
        if not name or name in table:
            raise cursor.fail(name or "tensor name", "duplicate tensor" if name else "empty name")
        table[name] = _tensor_info(cursor, name, alignment)
    start = -(-cursor.offset // alignment) * alignment
    _check_layout(cursor, table, start)
    cursor.spend("bytes of header", cursor.offset, "header")
    data = memoryview(cursor.data)
    for name, info in table.items():
        begin = start + info.offset
        file.tensors[name] = TensorView(name, info.type, info.shape, data[begin : begin + info.size])


def _alignment(file: GGUFFile) -> int:
    """Get the alignment of tensor data. Raises GGUFError unless it is a power of two, stored as u32."""
    key = "general.alignment"
    value = file.integer(key, 1, MAX_ALIGNMENT, 32)
    if key in file and (file.describe(key)[0] != "u32" or value & (value - 1)):
        raise GGUFError(file.path, key, f"{value} stored as {file.describe(key)[0]}, expected a power of two as u32")
    return value


def _tensor_info(cursor: Cursor, name: str, alignment: int) -> TensorInfo:
    """Read one row of the tensor table and compute the size of its data."""
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
    """Check that all data lie within the file and do not overlap. Gaps, any order and empty tensors are allowed."""
    reached, previous, end = 0, "", len(cursor.data)
    for name, info in sorted(table.items(), key=lambda item: (item[1].offset, item[1].size)):
        if info.offset < reached and info.size:
            raise cursor.fail(name, f"its data overlaps that of {previous}")
        if start + info.offset + info.size > end:
            problem = f"{info.size} bytes of data expected at offset {start + info.offset}, but the file ends at {end}"
            raise cursor.fail(name, problem)
        if info.size:
            reached, previous = info.offset + info.size, name


def _join(first: GGUFFile, left: dict[str, int]) -> None:
    """Add the tensors of the other splits, which share the first one's limits. Their own metadata are dropped.

    Keys, names and numbers are those of llama.cpp's gguf-split: the first split has number 0 and the name ...-00001."""
    count = first.integer("split.count", 2, MAX_SPLITS)
    match = FIRST.fullmatch(first.path.name)
    if first.integer("split.no", 0, MAX_SPLITS) != 0 or match is None or int(match[3]) != count:
        problem = f"one of {count} files, expected the first: ...-00001-of-{count:05d}.gguf"
        raise GGUFError(first.path, "split.no", problem)
    for number in range(1, count):
        path = first.path.with_name(f"{match[1]}{number + 1:05d}{match[2]}")
        first.tensors |= _split(path, first, number, count, left)
        first.paths.append(path)
    expected = first.integer("split.tensors.count", 0, 1 << 31)
    if len(first.tensors) != expected:
        raise GGUFError(first.path, "split.tensors.count", f"{expected}, but the splits hold {len(first.tensors)}")


def _split(path: Path, first: GGUFFile, number: int, count: int, left: dict[str, int]) -> dict[str, TensorView]:
    """Read the tensors of split `number` of `count`. Raises GGUFError if it is missing or belongs elsewhere."""
    if not os.path.exists(path):
        raise GGUFError(path, "file", f"missing: split {number + 1} of {count} of {first.path.name}")
    cursor = _open(path)
    cursor.left = left
    split = _parse(cursor)
    no, total = split.integer("split.no", 0, MAX_SPLITS) + 1, split.integer("split.count", 0, MAX_SPLITS)
    if (no, total) != (number + 1, count):
        raise GGUFError(path, "split.no", f"is split {no} of {total}, expected {number + 1} of {count}")
    repeated = first.tensors.keys() & split.tensors.keys()
    if repeated:
        raise GGUFError(path, min(repeated), "duplicate tensor: an earlier split has it too")
    return split.tensors
