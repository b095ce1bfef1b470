"""A body's content encoding: gzip and deflate, undone as it comes, never more than a piece at a time.

Facts: RFC 9110, 8.4.1. `deflate` means zlib's form (RFC 1950); some clients send the bare form (RFC 1951), which cannot
be mistaken for it. A gzip body may be several members, one after the other (RFC 1952, 2.2).
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from .errors import ApiError

PIECE = 2**18  # bytes undone at a time
ACCEPTED = "gzip, deflate, identity"
GZIP, ZLIB, BARE = 31, 15, -15  # zlib's numbers


class Decoder(Protocol):
    """Bytes as sent -> bytes as meant."""

    def pieces(self, data: bytes) -> Iterator[bytes]: ...

    def end(self) -> None: ...


def decoder(headers: Iterable[str]) -> Decoder:
    """Return what undoes the encoding that `Content-Encoding` names. ApiError 415 for one that is not known."""
    names = [name.strip().lower() for value in headers for name in value.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if not names:
        return Identity()
    if len(names) > 1 or names[0] not in ("gzip", "x-gzip", "deflate"):
        problem = f"content-encoding: {', '.join(names)}: expected one of {ACCEPTED}"
        raise ApiError(415, problem, code="unsupported_content_encoding")
    return Inflater(names[0])


class Identity:
    """Bytes as they are."""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield data

    def end(self) -> None:
        pass


class Inflater:
    """One body's decompression. ApiError 400 for data that is not what `name` says."""

    def __init__(self, name: str) -> None:
        self._name, self._begun = name, b""
        self._inflate: Any = None if name == "deflate" else zlib.decompressobj(GZIP)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield at most PIECE bytes at a time."""
        if self._inflate is None:
            data = self._begun = self._begun + data
            if len(data) < 2:
                return
            self._inflate = zlib.decompressobj(_deflate_form(data))
        piece = b""
        while data or len(piece) == PIECE:
            if data and self._inflate.eof:
                self._next_member()
            piece = self._piece(data)
            yield piece
            data = self._inflate.unconsumed_tail or self._inflate.unused_data

    def _piece(self, data: bytes) -> bytes:
        try:
            return bytes(self._inflate.decompress(data, PIECE))
        except zlib.error:
            raise self._wrong("the body is not in that form") from None

    def end(self) -> None:
        """Raise ApiError unless the data came to its end."""
        if self._inflate is None or not self._inflate.eof:
            raise self._wrong("the body ends before its data does")

    def _next_member(self) -> None:
        if self._name == "deflate":
            raise self._wrong("the body goes on after its data")
        self._inflate = zlib.decompressobj(GZIP)

    def _wrong(self, problem: str) -> ApiError:
        return ApiError(400, f"content-encoding: {self._name}: {problem}", code="invalid_content_encoding")


def _deflate_form(data: bytes) -> int:
    """By the two bytes that begin it."""
    return ZLIB if data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0 else BARE
