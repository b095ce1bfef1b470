"""Small pictures to send: two that no model takes for one another, in every format of OpenAI's guide."""

import base64
import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

SIDE = 28


@cache
def picture(kind: str = "PNG", which: int = 0) -> bytes:
    """Return a picture file: 0 a red cross on white, 1 a blue frame on black."""
    rgb = np.full((SIDE, SIDE, 3), 255 if which == 0 else 0, np.uint8)
    if which == 0:
        rgb[10:18] = rgb[:, 10:18] = (220, 0, 0)
    else:
        rgb[:6] = rgb[-6:] = rgb[:, :6] = rgb[:, -6:] = (0, 0, 220)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind)
    return file.getvalue()


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image(which: int = 0, kind: str = "png") -> dict[str, Any]:
    """Return a content part with a picture."""
    return part(data_uri(picture(kind.upper(), which), kind))


def part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url} | more}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


ASK = text("What is in the picture?")
