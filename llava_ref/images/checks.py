"""Check that a file has all pixels of its picture. Decoders ignore missing data silently, and leave rows black.

docs/pictures.md has the table of what is an error and what is a warning.
"""

from . import bmp, jpeg, png
from .container import Parts


def lacking(name: str, parts: Parts, size: tuple[int, int]) -> tuple[list[str], bytes | None]:
    """Return what a file of the format `name` lacks of its `size`, and for a JPEG the longer file of `jpeg.missing`.

    Raises ValueError if other readers refuse the file too.
    """
    notes, longer = list[str](), None
    if parts.frame and parts.frame != size:
        (w, h), (width, height) = parts.frame, size
        notes.append(f"the first frame has {w} x {h} of {width} x {height} pixels, the others are not in the file")
    if name == "PNG":
        png.count(parts.pixels)
    elif name == "JPEG":
        problem, longer = jpeg.missing(parts.pixels)
        if problem:
            return [problem], None
    elif name == "BMP" and not bmp.draws_all(parts.pixels):
        notes.append("rows end early: some pixels are not in the file")
    return notes, longer
