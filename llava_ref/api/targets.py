"""A request's target -> the path of a route. Clients write one address in several forms, and each means the same.

Forms (RFC 9112, 3.2): `/v1/models`, and the absolute form `http://host/v1/models`, which a server must accept. A slash
too many, doubled or at the end, comes from base URLs joined by hand.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

ABSOLUTE = re.compile(rb"(?i)https?://([^/?#@]+)(/.*)?")
NITRO = "/inferences/"


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path with single slashes and none at the end; Nitro's clients write loadModel and loadmodel."""
    absolute = ABSOLUTE.fullmatch(scope["raw_path"])
    path = scope["path"] if absolute is None else unquote((absolute[2] or b"/").decode("ascii"))
    path = re.sub("/{2,}", "/", path)
    path = path.rstrip("/") or "/"
    return path.lower() if path.lower().startswith(NITRO) else path


def authority_of(scope: Mapping[str, Any]) -> str | None:
    """Return host and port of a target in absolute form; None in the usual form."""
    absolute = ABSOLUTE.fullmatch(scope["raw_path"])
    return None if absolute is None else absolute[1].decode("ascii")
