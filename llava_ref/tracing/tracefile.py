"""Write and read trace files: the arrays of a run as safetensors, with the settings of the run in the header.

Every name is a stage (`models.stages`), followed by `#1`, `#2`, ... for a further picture; in addition there is
`token_ids` (T,) int64, -1 at a picture's positions. The header's `__metadata__` holds text; other values are JSON. Any
program's safetensors file with these names can be read. Format: https://github.com/huggingface/safetensors, README,
"Format".
"""

import json
import math
import os
import struct
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .. import gguf
from ..errors import ParameterError
from .trace import join, joined_shape

DTYPES = {"float32": "F32", "uint8": "U8", "int64": "I64"}
READ = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """Holds the place, shape and type of an array in the temporary file."""

    at: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Writer:
    """Writes the arrays of a trace to disk as they come, so that memory holds one tensor at most.

    Use it as `with Writer(path) as sink:`, call `sink.add(name, piece)` for each array, and `sink.finish(about)` to
    make the file. Without `finish`, or if that fails, no file is left behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._body: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)
        self._pieces: dict[str, list[StoredPiece]] = {}

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._body.close()

    def add(self, name: str, piece: np.ndarray) -> None:
        """Add an array, float32, uint8 or int64 of any shape. Rows added under the same name are joined in order."""
        at = self._body.seek(0, os.SEEK_END)
        self._body.write(np.ascontiguousarray(piece).data)
        self._pieces.setdefault(name, []).append(StoredPiece(at, piece.shape, piece.dtype))

    def finish(self, about: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
        """Write the file, completely or not at all; return the shape of every tensor."""
        shapes = {name: joined_shape(name, [piece.shape for piece in pieces]) for name, pieces in self._pieces.items()}
        header, at = dict[str, Any](__metadata__=dict(about)), 0
        for name, shape in shapes.items():
            dtype = self._pieces[name][0].dtype
            end = at + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPES[dtype.name], "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with whole_file(self.path) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in self._pieces:
                file.write(self._read(name).data)
        return shapes

    def _read(self, name: str) -> np.ndarray:
        pieces = []
        for piece in self._pieces[name]:
            self._body.seek(piece.at)
            data = self._body.read(math.prod(piece.shape) * piece.dtype.itemsize)
            pieces.append(np.frombuffer(data, piece.dtype).reshape(piece.shape))
        return np.ascontiguousarray(join(name, pieces))


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears complete at the end of the block, or not at all if the block fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class TraceFile(Mapping[str, np.ndarray]):
    """Reads a trace file. An array is read when it is accessed, BF16 as float32.

    `rounded`: name -> type of the tensors in F16 or BF16. Names come in the order of the file, which may be any:
    safetensors' own `save_file` sorts them by type and alphabet; `models.order.place` sorts them as computed. Raises
    ParameterError if the file is not a safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            opened: Any = safe_open(str(path), framework="np")
            self._file = opened
            self.about: dict[str, str] = dict(opened.metadata() or {})
            self._body, entries = _header(path)
        except FileNotFoundError:
            raise ParameterError(path, "file", "is not there") from None
        except (SafetensorError, OSError) as error:
            raise ParameterError(path, "header", f"not a safetensors file: {error}") from None
        self._entries = {
            name: entries[name] for name in sorted(entries, key=lambda name: entries[name]["data_offsets"])
        }
        types = {name: entry["dtype"] for name, entry in self._entries.items()}
        self.rounded: dict[str, str] = {name: kind for name, kind in types.items() if kind in ("F16", "BF16")}

    def __getitem__(self, name: str) -> np.ndarray:
        kind = self._entries[name]["dtype"]
        if kind == "BF16":
            return self._bfloat16(name)
        if kind not in READ:
            raise ParameterError(self.path, name, f"of type {kind}, expected one of BF16, {', '.join(READ)}")
        return np.asarray(self._file.get_tensor(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an array's shape without reading it."""
        return tuple(self._entries[name]["shape"])

    def _bfloat16(self, name: str) -> np.ndarray:
        """Read a BF16 array as float32, of which it is the upper half; numpy has no such type."""
        start, end = self._entries[name]["data_offsets"]
        with open(self.path, "rb") as file:
            file.seek(self._body + start)
            upper = np.frombuffer(file.read(end - start), "<u2").astype(np.uint32)
        return (upper << 16).view(np.float32).reshape(self.shape(name))

    def fact(self, key: str, default: Any) -> Any:
        """Return a JSON value of the header, or `default`. Raises ParameterError for a type other than `default`'s."""
        try:
            value = json.loads(self.about[key]) if key in self.about else default
        except ValueError:
            value = None
        if not isinstance(value, type(default)):
            problem = f"{self.about[key][:40]!r} is not a JSON {'list' if isinstance(default, list) else 'object'}"
            raise ParameterError(self.path, f"__metadata__.{key}", problem)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the offset of the tensors and the header's entry for each, for a file that safetensors has accepted."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Return {file name: SHA-256}, which ties a result to the files that it was computed from.

    Files that share a name are listed by their paths."""
    found = gguf.hashes(paths)
    named = Counter(path.name for path in found)
    return {path.name if named[path.name] == 1 else str(path): digest for path, digest in found.items()}
