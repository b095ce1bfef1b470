"""Define what the modules of the file formats share: a picture's file without what its pixels do not need."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

MAX_BLOCKS = 100_000  # chunks of a PNG or WebP, segments of a JPEG's header, blocks of a GIF's first frame

Chunk = tuple[bytes, int, int]  # its name, the first byte of its data, and one past the last
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """A picture's file with its pixels alone, and the metadata that tell which way is up."""

    pixels: bytes  # a file of the same format; the first frame of an animation
    exif: bytes = b""
    xmp: bytes = b""
    colours: int | None = None  # in the palette, if pixels are indices into one
    frame: tuple[int, int] | None = None  # width and height of the first frame, if the format has frames
    no_transparency: bool = False  # whether a PNG's tRNS chunk is damaged, and left out of `pixels`


def limited(items: Iterator[T], what: str) -> Iterator[T]:
    """Yield `items`. Raises ValueError after MAX_BLOCKS of them."""
    for count, item in enumerate(items):
        if count == MAX_BLOCKS:
            raise ValueError(f"over {MAX_BLOCKS:,} {what}")
        yield item
