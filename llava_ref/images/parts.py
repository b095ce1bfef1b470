"""Recognise a picture's file format, and strip the file to its pixels and the metadata that tell which way is up.

Pillow reads everything beside the pixels too (texts, colour profiles, resolution, animation, comments), and refuses a
good picture if any of it is damaged. So it gets a file of the same format that holds the pixels alone, and damage
elsewhere cannot matter.
"""

import re
from collections.abc import Callable

from ..errors import ImageError
from . import bmp, gif, jpeg, png, webp
from .container import Parts

__all__ = ["Parts", "recognise", "take_apart"]

EXPECTED = "expected PNG, JPEG, WebP, GIF or BMP"
MAGIC = {  # first bytes -> Pillow's name
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
}
OTHERS = {  # formats that are not supported, by a pattern for their first bytes
    "AVIF": rb".{4}ftyp(avi[fs]|m[is]f1.{4}(.{4}){0,4}?avif)",
    "HEIC": rb".{4}ftyp(he[iv][cmsx]|m[is]f1)",
    "MP4": rb".{4}ftyp",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "ICO": rb"\0\0[\1\2]\0[^\0]",
    "PDF": rb"%PDF-",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "Photoshop": rb"8BPS",
    "PNM": rb"P[1-7]\s",
    "HTML": rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)\b",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<[?!].*?)?<svg\b",
    "XML": rb"(\xef\xbb\xbf)?\s*<\?xml\b",
    "Git LFS pointer": rb"version https://git-lfs",
}
SPLIT: dict[str, Callable[[bytes], Parts]] = {
    "PNG": png.split,
    "JPEG": jpeg.split,
    "GIF": gif.split,
    "WEBP": webp.split,
    "BMP": bmp.split,
}


def recognise(data: bytes, where: str, *, quoted: bool = True) -> str:
    """Return Pillow's name of the format with these first bytes. Raises ImageError if it is none of the five, which
    quotes the bytes unless the reader may not see what is in that file."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in MAGIC.items():
        if data.startswith(magic):
            return name
    start = data[:1024]
    other = next((name for name, pattern in OTHERS.items() if re.match(pattern, start, re.DOTALL)), None)
    if other:
        raise ImageError(where, "format", f"{other} is not supported, {EXPECTED}", code="unsupported_image_format")
    found = "no bytes" if not data else f"starts with {data[:12]!r}" if quoted else "unknown"
    problem = f"{found}, {EXPECTED}"
    raise ImageError(where, "format", problem, code="unsupported_image_format")


def take_apart(name: str, data: bytes) -> Parts:
    """Split a file of the format `name`. Raises LookupError, struct.error or ValueError if that is not possible."""
    return SPLIT[name](data)
