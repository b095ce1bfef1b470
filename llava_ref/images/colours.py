"""Convert what Pillow decoded to RGB: transparency by the quirk `alpha`, 16 bits shifted right by 8."""

import numpy as np
from PIL import GifImagePlugin, Image

from ..profiles import Alpha


def to_rgb(image: Image.Image, alpha: Alpha) -> np.ndarray:
    """Convert a loaded image to RGB (h, w, 3) uint8."""
    transparent = "A" in image.getbands() or image.info.get("transparency") is not None
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255; other 16-bit PNGs it shifts itself
        grey = (values := np.asarray(image)) >> 8
        if transparent and alpha == "white":
            grey[values == image.info["transparency"]] = 255
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if transparent and alpha == "white":
        image = _over_white(image)
    rgb = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if alpha == "drop" and isinstance(image, GifImagePlugin.GifImageFile) and image.mode in ("P", "L"):
        _blank_as_stb_image(rgb, image)
    return rgb


def _over_white(image: Image.Image) -> Image.Image:
    """Lay an image with an alpha channel, or with transparent colours, over white."""
    picture = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(picture, mask=picture)
    return white


def _blank_as_stb_image(rgb: np.ndarray, image: GifImagePlugin.GifImageFile) -> None:
    """Fill what a GIF's first frame does not draw as stb_image 2.30 does (`stbi__gif_load_next`)."""
    left, top, right, bottom = image.dispose_extent or (0, 0, *image.size)
    frame = rgb[top:bottom, left:right].copy()
    frame[np.asarray(image)[top:bottom, left:right] == image.info.get("transparency", -1)] = 0
    background = 3 * image.info.get("background", 0)
    palette = image.global_palette.getdata()[1] if image.global_palette else b""
    around = palette[background : background + 3][::-1]  # stb_image keeps palettes as BGR, and copies this colour as is
    rgb[:] = list(around) if background and around else 0
    rgb[top:bottom, left:right] = frame
