"""`%` and `str.format` over `Marked` text, field by field; where the result is not Python's, of unknown origin."""

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
    pieces: list[str] = []
    at = 0
    for found in PERCENT.finditer(plain(form)):
        pieces.append(form[at : found.start()])
        at = found.end()
        if found["kind"] == "%":
            pieces.append("%")
            continue
        value = values[found["key"]] if found["key"] is not None else queue.pop(0) if queue else ""
        pieces.append(_converted(found, value))
    return _checked(joined([*pieces, form[at:]]), text, form)


def _converted(found: re.Match[str], value: Any) -> str:
    bare = found[0] if found["key"] is None else found[0].replace(f"({found['key']})", "", 1)
    text = str.__mod__(bare, (value,))
    if found["kind"] != "s":
        return unknown(text) if tainted(value) else text
    return padded(text, text_of(value), found["size"], "<" if "-" in found["flags"] else ">")


def _checked(followed: str, text: str, form: str) -> str:
    """What was followed, if Python agrees and the form is the template's own."""
    return followed if followed == text and not tainted(form) else unknown(text)


def format_text(formatter: SandboxedFormatter, form: str, args: tuple[Any, ...], values: Mapping[str, Any]) -> str:
    """Return `form.format(*args, **values)`, fields looked up and checked by jinja's `formatter`."""
    text: str = formatter.vformat(plain(form), args, values)
    if not tainted([form, *args, *values.values()]):
        return text
    pieces: list[str] = []
    count = 0
    for literal, name, spec, conversion in formatter.parse(plain(form)):
        pieces.append(literal)
        if name is None:
            continue
        if not re.match(r"[^.\[]", name):
            name, count = f"{count}{name}", count + 1
        value = formatter.get_field(name, args, values)[0]
        changed = {None: lambda x: x, "s": text_of}.get(conversion, lambda x: unknown(repr(x)))(value)
        pieces.append(_spec(changed, formatter.vformat(spec or "", args, values)))
    return _checked(joined(pieces), text, form)


def _spec(value: Any, spec: str) -> str:
    if isinstance(value, str):
        return marked(value).__format__(spec)
    return text_of(value) if not spec else format(value, spec)
