"""Pages of HTML with everything in them: what `quality` and `conform` have in common."""

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, StrictUndefined

from .output import visible


def environment(**filters: Callable[..., Any]) -> Environment:
    """jinja2 for templates of our own. Everything from files and models is escaped in what it makes."""
    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    made.filters.update(filters)
    return made


def _visible(value: Any) -> Any:
    """Control characters, those that turn text around among them, shown as escapes. Markup is of our own making."""
    return visible(value) if type(value) is str else value
