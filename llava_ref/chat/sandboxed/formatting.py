"""Format `Marked` text with `%` and `str.format`, field by field.

A result that differs from Python's is replaced by Python's, of unknown origin.
"""

import re
from collections.abc import Mapping
from typing import Any

from jinja2.sandbox import SandboxedFormatter

from .marked import joined, marked, padded, plain, tainted, text_of, unknown

PERCENT = re.compile(
    r"%(?:\((?P<key>[^()]*)\))?(?P<flags>[-+ #0]*)(?P<width>\d+)?(?:\.(?P<size>\d*))?[hlL]?(?P<kind>[a-zA-Z%])"
)


def percent(form: str, values: Any) -> str:
    """Return `form % values`."""
    text = str.__mod__(form, values)
    if not tainted([form, values]):
        return text
    queue = list(values) if isinstance(values, tuple) else [values]
    out: list[str] = []
    end = 0
    for field in PERCENT.finditer(plain(form)):
        out.append(form[end : field.start()])
        end = field.end()
        if field["kind"] == "%":
            out.append("%")
            continue
        value = values[field["key"]] if field["key"] is not None else queue.pop(0) if queue else ""
        out.append(_converted(field, value))
    return _checked(joined([*out, form[end:]]), text, form)


def _converted(field: re.Match[str], value: Any) -> str:
    """Format `value` by one field of a `%` format."""
    bare = field[0] if field["key"] is None else field[0].replace(f"({field['key']})", "", 1)
    text = str.__mod__(bare, (value,))
    if field["kind"] != "s":
        return unknown(text) if tainted(value) else text
    return padded(text, text_of(value), field["size"], "<" if "-" in field["flags"] else ">")


def _checked(tracked: str, text: str, form: str) -> str:
    """Return the tracked text if it equals Python's and the format is the template's own, else unknown origin."""
    return tracked if tracked == text and not tainted(form) else unknown(text)


def format_text(formatter: SandboxedFormatter, form: str, args: tuple[Any, ...], values: Mapping[str, Any]) -> str:
    """Return `form.format(*args, **values)`, with the fields checked by jinja's `formatter`."""
    text: str = formatter.vformat(plain(form), args, values)
    if not tainted([form, *args, *values.values()]):
        return text
    out: list[str] = []
    count = 0
    for literal, name, spec, conversion in formatter.parse(plain(form)):
        out.append(literal)
        if name is None:
            continue
        if not re.match(r"[^.\[]", name):
            name, count = f"{count}{name}", count + 1
        value = formatter.get_field(name, args, values)[0]
        changed = {None: lambda x: x, "s": text_of}.get(conversion, lambda x: unknown(repr(x)))(value)
        out.append(_spec(changed, formatter.vformat(spec or "", args, values)))
    return _checked(joined(out), text, form)


def _spec(value: Any, spec: str) -> str:
    """Format a value by the format specification of its field."""
    if isinstance(value, str):
        return marked(value).__format__(spec)
    return text_of(value) if not spec else format(value, spec)
