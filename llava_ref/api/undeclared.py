"""Checks parameters that a request's type does not declare against the tables in `parameters`."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from ..errors import printable
from .errors import ApiError, refuse
from .parameters import INSTEAD, ParameterTable

MAX_WARNINGS = 20
INDEX = re.compile(r"\[\d+\]")  # which the tables leave out


def describe(table: ParameterTable, schema: dict[str, Any]) -> None:
    """Add the parameters of `table` to a request's JSON Schema, for /openapi.json."""
    added: dict[str, Any] = {name: {"description": "Has no effect."} for name in sorted(table.silent)}
    for name, values in table.warned.items():
        added[name] = {"description": f"Has no effect; the response has a warning{_unless(values)}."}
    for name, values in table.refused.items():
        added[name] = {"enum": [None, *values], "description": f"Not supported{_hint(name)}."}
    schema["properties"] |= {n: about for n, about in added.items() if "." not in n and n not in schema["properties"]}


def check(params: BaseModel, table: ParameterTable, *, strict: bool) -> tuple[str, ...]:
    """Return a warning for each undeclared parameter that has no effect.

    Raises ApiError 400 for a refused parameter, and if `strict` for one that would be warned of."""
    warnings = []
    for path, value in _undeclared(params):
        name = INDEX.sub("", path)
        refused = name in table.refused
        values = table.refused[name] if refused else table.warned.get(name, ())
        if value is None or name in table.silent or any(_equal(value, default) for default in values):
            continue
        if refused or strict:
            raise _refusal(path, values)
        warnings.append(f"{printable(path, 100)}: has no effect here{_hint(path)}")
    return capped(warnings)


def _equal(value: Any, default: Any) -> bool:
    """Compare JSON values: 1.0 equals 1, but 0 does not equal false."""
    return bool(value == default) and isinstance(value, bool) == isinstance(default, bool)


def capped(warnings: list[str]) -> tuple[str, ...]:
    """Return the first MAX_WARNINGS warnings, and one more with the number of those omitted."""
    more = len(warnings) - MAX_WARNINGS
    return (*warnings[:MAX_WARNINGS], *([f"{more} more parameters have no effect here"] if more > 0 else []))


def _undeclared(params: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of each undeclared parameter, nested ones included."""
    for name, value in (params.model_extra or {}).items():
        yield prefix + name, value
    for name, field in type(params).model_fields.items():
        value, path = getattr(params, name), f"{prefix}{field.alias or name}"
        if isinstance(value, BaseModel):
            yield from _undeclared(value, f"{path}.")
        for i, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, BaseModel):
                yield from _undeclared(item, f"{path}[{i}].")


def _refusal(path: str, values: tuple[Any, ...]) -> ApiError:
    expected = f", expected {_either(values)}" if values else ""
    problem = f"{printable(path, 100)}: not supported{expected}{_hint(path)}"
    return refuse(path, problem, "unsupported_value" if values else "unsupported_parameter")


def _hint(path: str) -> str:
    return f", use {INSTEAD[path]}" if path in INSTEAD else ""


def _unless(values: tuple[Any, ...]) -> str:
    return f" unless it is {_either(values)}" if values else ""


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(json.dumps(value) for value in values)
