"""A picture drawn with characters: two pixels to a character cell, the upper one as the colour of a half block."""

import numpy as np
from PIL import Image

COLUMNS = 36


def draw(picture: Image.Image, columns: int = COLUMNS) -> str:
    """Lines of `columns` half blocks with 24-bit colour escapes; the picture keeps its shape."""
    rows = max(2, round(columns * picture.height / picture.width / 2) * 2)
    small = picture.convert("RGB").resize((columns, rows), Image.Resampling.BOX)
    pixels = np.asarray(small).tolist()  # rows of (r, g, b)
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{r};{g};{b}m\x1b[48;2;{s};{t};{u}m▀" for (r, g, b), (s, t, u) in zip(upper, lower, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)
