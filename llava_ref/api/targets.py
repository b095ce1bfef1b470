"""Turns a request's target into the path of a route, since clients write one path in several forms.

Besides `/v1/models` there is the absolute form `http://host/v1/models`, which a server must accept (RFC 9112, 3.2).
Extra slashes, doubled or trailing, come from base URLs joined by hand.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

ABSOLUTE = re.compile(rb"(?i)https?://([^/?#@]+)(/.*)?")
NITRO = "/inferences/"


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path with single slashes and none at the end. Nitro's paths become lower case: its clients write
    both loadModel and loadmodel."""
    absolute = ABSOLUTE.fullmatch(scope["raw_path"])
    path = scope["path"] if absolute is None else unquote((absolute[2] or b"/").decode("ascii"))
    path = re.sub("/{2,}", "/", path)
    path = path.rstrip("/") or "/"
    return path.lower() if path.lower().startswith(NITRO) else path


def authority_of(scope: Mapping[str, Any]) -> str | None:
    """Return host and port of a target in absolute form, None for the usual form."""
    absolute = ABSOLUTE.fullmatch(scope["raw_path"])
    return None if absolute is None else absolute[1].decode("ascii")
