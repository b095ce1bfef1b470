"""Make self-contained HTML pages: the functions that `study`, `quality` and `conform` share."""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from .errors import visible


def environment(**filters: Callable[..., Any]) -> Environment:
    """Return a jinja2 environment for our own templates. It escapes all text from files and models."""
    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    made.filters.update(filters)
    return made


def data_uri(rgb: np.ndarray) -> str:
    """Return a data URI with a picture as PNG, (h, w, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _visible(value: Any) -> Any:
    """Show control characters of a text, such as those that reverse it, as escapes. Markup is our own, and kept."""
    return visible(value) if type(value) is str else value
