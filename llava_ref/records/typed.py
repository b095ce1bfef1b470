"""Read plain JSON as dataclasses, and say which field is wrong. Nothing is converted, guessed or ignored."""

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Fail = Callable[[str, str], Exception]  # (the field's path, what is wrong with it) -> the error
NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def read_as(kind: Any, value: Any, fail: Fail, where: str = "record") -> Any:
    """Return a JSON value as `kind`: a dataclass, list, dict with texts as keys, union, or plain type.

    Raises what `fail` makes for the first field that is missing, unknown or of another type."""
    if is_dataclass(kind):
        return _read_fields(kind, value, fail, where)
    origin = get_origin(kind)
    if origin is list and isinstance(value, list):
        return [read_as(get_args(kind)[0], item, fail, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: read_as(get_args(kind)[1], item, fail, _inside(where, key)) for key, item in value.items()}
    if origin in (Union, UnionType):
        return _read_union(get_args(kind), value, fail, where)
    if kind is Any or _is(value, kind):
        return value
    raise fail(where, f"expected {_named(kind)}, got {_found(value)}")


def _read_fields(kind: Any, value: Any, fail: Fail, where: str) -> Any:
    if not isinstance(value, dict):
        raise fail(where, f"expected an object, got {_found(value)}")
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    for key in value:
        if key not in known:
            raise fail(_inside(where, key), f"unknown, expected one of {', '.join(known)}")
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise fail(_inside(where, name), "missing")
    return kind(**{key: read_as(hints[key], item, fail, _inside(where, key)) for key, item in value.items()})


def _read_union(kinds: tuple[Any, ...], value: Any, fail: Fail, where: str) -> Any:
    """Read a value as the one of several types that it has: of lists, objects and dataclasses there is one at most."""
    if any(_is(value, kind) for kind in kinds):
        return value
    for kind in kinds:
        if isinstance(value, dict) and (is_dataclass(kind) or get_origin(kind) is dict):
            return read_as(kind, value, fail, where)
        if isinstance(value, list) and get_origin(kind) is list:
            return read_as(kind, value, fail, where)
    raise fail(where, f"expected {' or '.join(map(_named, kinds))}, got {_found(value)}")


def _is(value: Any, kind: Any) -> bool:
    """Tell whether a value is of a plain type. A whole number is a number too, and true is neither."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _inside(where: str, key: str) -> str:
    return key if where == "record" else f"{where}.{key}"


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    return NAMES.get(kind) or ("a list" if get_origin(kind) is list else "an object")


def _found(value: Any) -> str:
    return NAMES.get(type(value)) or ("a list" if isinstance(value, list) else "an object")
