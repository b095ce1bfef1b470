"""Decodes the content encoding of a body, gzip or deflate, while it arrives, in pieces of bounded size.

Sources: RFC 9110, 8.4.1. `deflate` means zlib's format (RFC 1950). Some clients send raw deflate (RFC 1951); its
first two bytes tell it apart. A gzip body may consist of several members, one after the other (RFC 1952, 2.2).
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from .errors import ApiError

PIECE = 2**18  # bytes decompressed at a time
ACCEPTED = "gzip, deflate, identity"
GZIP, ZLIB, RAW = 31, 15, -15  # values of zlib's `wbits`


class ContentDecoder(Protocol):
    """Decodes one body: encoded bytes in, decoded bytes out."""

    def pieces(self, data: bytes) -> Iterator[bytes]: ...

    def end(self) -> None: ...


def content_decoder(headers: Iterable[str]) -> ContentDecoder:
    """Return a decoder for the given `Content-Encoding` headers. Raises ApiError 415 for an unknown encoding."""
    names = [name.strip().lower() for value in headers for name in value.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if not names:
        return Identity()
    if len(names) > 1 or names[0] not in ("gzip", "x-gzip", "deflate"):
        problem = f"content-encoding: {', '.join(names)}: expected one of {ACCEPTED}"
        raise ApiError(415, problem, code="unsupported_content_encoding")
    return Inflater(names[0])


class Identity:
    """Passes bytes through unchanged."""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield data

    def end(self) -> None:
        pass


class Inflater:
    """Decompresses one body. Its methods raise ApiError 400 for data that is not in the format `name`."""

    def __init__(self, name: str) -> None:
        self._name, self._start = name, b""
        self._inflate: Any = None if name == "deflate" else zlib.decompressobj(GZIP)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed data, at most PIECE bytes at a time."""
        if self._inflate is None:
            data = self._start = self._start + data
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
            raise self._error("the body is not in this format") from None

    def end(self) -> None:
        """Check that the compressed data is complete. Raises ApiError 400 if it is truncated."""
        if self._inflate is None or not self._inflate.eof:
            raise self._error("the compressed data is truncated")

    def _next_member(self) -> None:
        if self._name == "deflate":
            raise self._error("the body continues after the end of the compressed data")
        self._inflate = zlib.decompressobj(GZIP)

    def _error(self, problem: str) -> ApiError:
        return ApiError(400, f"content-encoding: {self._name}: {problem}", code="invalid_content_encoding")


def _deflate_form(data: bytes) -> int:
    """Return ZLIB if the first two bytes are a zlib header, else RAW."""
    return ZLIB if data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0 else RAW
