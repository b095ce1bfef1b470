"""Read JSON that anybody may have written: bounded in items and depth, with numbers and texts that JSON has."""

import json
import re
from typing import Any, NoReturn

MAX_DEPTH = 64  # of arrays and objects
MAX_ITEMS = 1_000_000  # commas and brackets: bounds the memory that a text takes as objects
ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # UTF-8 has no surrogates: one can only arrive as an escape
SURROGATE = re.compile("[\ud800-\udfff]")


class JsonError(ValueError):
    """Reports data that are not JSON within the limits, or have a value that is no text."""

    def __init__(self, problem: str, where: str | None = None) -> None:
        """Take the problem, and of a value that is no text the JSON path, "" if that is a name."""
        super().__init__(problem)
        self.where = where


def parse_json_text(data: bytes | bytearray, name: str) -> Any:
    """Parse JSON, ignoring a byte order mark (RFC 8259, 8.1). `name`: what errors call the text.

    Raises JsonError for anything that is not JSON, contains NaN, infinity or half a surrogate pair, or is nested deeper
    or has more items than the limits allow."""
    if sum(data.count(sign) for sign in b",[{") > MAX_ITEMS:
        raise JsonError(f"more than {MAX_ITEMS:,} commas and brackets")
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise JsonError(f"{name} is not UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # also a number of more than 4,300 digits
        raise JsonError(f"{name} is not JSON: {error}") from None
    _check_depth(value)
    if ESCAPED_SURROGATE.search(data):
        _check_text(value, "")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        children = (child for parent in level for child in (parent.values() if isinstance(parent, dict) else parent))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> JsonError:
    return JsonError(f"nested more than {MAX_DEPTH} levels deep")


def _check_text(value: Any, where: str) -> None:
    """Check all strings in `value`, field names included, for surrogates. `where`: the JSON path of `value`."""
    if isinstance(value, str) and (lone := SURROGATE.search(value)):
        problem = f"{where or 'a name'}: character {lone.start()}: half of a surrogate pair, which is not text"
        raise JsonError(problem, where)
    if isinstance(value, dict):
        for name, item in value.items():
            _check_text(name, where)
            _check_text(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_text(item, f"{where}[{i}]")
