"""Draw a picture with half blocks: two pixels per character cell, the upper as foreground, the lower as background."""

import numpy as np
from PIL import Image

COLUMNS = 36


def draw(picture: Image.Image, columns: int = COLUMNS) -> str:
    """Draw lines of `columns` half blocks with 24-bit colour escapes; the picture keeps its aspect ratio."""
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
