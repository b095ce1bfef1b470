"""Define the options that `serve` and `batch` share: what a request may be, and where its pictures may come from."""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING

from ..errors import ParameterError
from ..images.decoding import MAX_IMAGES
from .parser import Parser

if TYPE_CHECKING:
    from ..api.limits import Limits

LIMITS = {  # the fields of api.limits.Limits, whose defaults are stated in docs/limits.md
    "max_body": (int, "bytes of a request (default: 64 MiB)"),
    "max_images": (int, "pictures of a request (default and at most: 16)"),
    "max_pixels": (int, "pixels of a request's pictures together (default: 80 million)"),
    "max_running": (int, "requests answered at once, where they can share steps (default: 8)"),
    "max_queue": (int, "requests that may wait (default: 16)"),
    "read_seconds": (float, "seconds for a request's header, and for its body (default: 30)"),
    "write_seconds": (float, "seconds until a client that stops reading is dropped (default: 30)"),
    "ping_seconds": (float, "seconds between comments in a silent stream (default: 5)"),
    "grace_seconds": (float, "seconds for running answers at shutdown (default: 10)"),
}
NONE_TOO = ("max_images", "max_queue", "grace_seconds")
"""Those that may be 0."""


def add_limits(parser: Parser, names: Iterable[str] = LIMITS) -> None:
    """Add --strict, and the limits with these names."""
    group = parser.group("limits")
    group.add_argument(
        "--strict", action="store_true", help="refuse a parameter that has no effect, instead of a warning"
    )
    for name in names:
        kind, text = LIMITS[name]
        group.add_argument(_option(name), type=kind, metavar="N", help=text)


def add_hosts(parser: Parser) -> None:
    """Add --allow-image-host."""
    parser.group("access").add_argument(
        "--allow-image-host",
        action="append",
        default=[],
        metavar="HOST",
        help="host of image URLs, which are refused without it; repeatable",
    )


def limits(args: argparse.Namespace) -> "Limits":
    """Return the limits of `add_limits`. Raises ParameterError."""
    from ..api.limits import Limits

    given = {name: value for name in LIMITS if (value := getattr(args, name, None)) is not None}
    for name, value in given.items():
        if not 0 <= value <= 2**40 or (value == 0 and name not in NONE_TOO):
            raise ParameterError(_option(name), str(value), "expected a number above 0")
    if given.get("max_images", 0) > MAX_IMAGES:
        raise ParameterError("--max-images", str(args.max_images), f"expected at most {MAX_IMAGES}")
    assert {field.name for field in fields(Limits)} == set(LIMITS)
    return Limits(**given)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
