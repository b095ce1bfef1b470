"""Pages of HTML with everything in them: what the studies, `quality` and `conform` have in common."""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from .errors import visible


def environment(**filters: Callable[..., Any]) -> Environment:
    """jinja2 for templates of our own. Everything from files and models is escaped in what it makes."""
    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    made.filters.update(filters)
    return made


def data_uri(rgb: np.ndarray) -> str:
    """A picture as PNG inside a page."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _visible(value: Any) -> Any:
    """Control characters, those that turn text around among them, shown as escapes. Markup is of our own making."""
    return visible(value) if type(value) is str else value
