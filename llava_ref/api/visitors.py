"""Checks which web pages may call the server, and by which host names: `Host`, `Origin`, `Sec-Fetch-Site`, preflights.

Any web page that a user visits can make the browser send requests to this machine, but it cannot choose these headers.
`Origin` and `Sec-Fetch-Site` tell where the page comes from. `Host` is the name in the URL, so it reveals a name that
an attacker's DNS server points at this machine (DNS rebinding).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from .errors import ApiError
from .fetch import literal_address
from .targets import authority_of

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
STATE_CHANGING_PATHS = (
    "/inferences/llamacpp/loadmodel",
    "/inferences/llamacpp/unloadmodel",
)  # GET changes state there too
CORS_METHODS = ("GET", "POST")  # allowed to web pages
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/?#\s]+)(?::([0-9]*))?")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
PORTS = {"http": "80", "https": "443"}
Scope = Mapping[str, Any]
RawHeaders = list[tuple[bytes, bytes]]


class AccessRules:
    """The access rules of one server.

    `origins`: origins of the web pages that may call, `*` for all. `hosts`: host names that the server answers to
    besides literal addresses and localhost; None allows every name."""

    def __init__(self, origins: Iterable[str] = (), hosts: Iterable[str] | None = None) -> None:
        self._origins = {as_origin(origin) for origin in origins}
        self._hosts = None if hosts is None else {as_host(host) for host in hosts}

    def check(self, scope: Scope) -> None:
        """Check one request. Raises ApiError 403 for an unknown host, and for a state change by a foreign page."""
        for authority in _authorities(scope) if self._hosts is not None else ():
            if not self._is_known_host(authority):
                problem = f"the host {authority!r} is not allowed (--allow-host)"
                raise ApiError(403, problem, code="host_not_allowed")
        if (scope["method"] not in SAFE_METHODS or scope["path"] in STATE_CHANGING_PATHS) and self._is_foreign_page(
            scope
        ):
            problem = "the request comes from a web page of another origin (--cors-origin)"
            raise ApiError(403, problem, code="origin_not_allowed")

    def _is_known_host(self, authority: str) -> bool:
        parts = AUTHORITY.fullmatch(authority.lower())
        host = "" if parts is None else as_host(parts[1])
        local = host == "localhost" or host.endswith(".localhost")
        return local or literal_address(host.strip("[]")) is not None or host in (self._hosts or ())

    def _is_foreign_page(self, scope: Scope) -> bool:
        """Return whether a page that is not allowed sent the request.

        Programs other than browsers send none of these headers. An old browser sends only `Referer` for an image."""
        if "*" in self._origins:
            return False
        pages = _header_values(scope, b"origin") or _header_values(scope, b"referer")
        not_allowed = [page for page in pages if not self.allows("/".join(page.split("/", 3)[:3]))]
        if pages and not not_allowed:
            return False
        return not all(_is_same_origin(page, scope) for page in not_allowed) or _is_cross_site(scope)

    def allows(self, origin: str) -> bool:
        """Return whether the operator allowed this origin."""
        return "*" in self._origins or as_origin(origin) in self._origins

    def preflight(self, scope: Scope) -> RawHeaders | None:
        """Return the response headers for a preflight request, None for any other request.

        Raises ApiError 403 for an origin and 405 for a method that is not allowed."""
        origin, method = _header_values(scope, b"origin"), _header_values(scope, b"access-control-request-method")
        if scope["method"] != "OPTIONS" or not origin or not method:
            return None
        if not self.allows(origin[0]):
            raise ApiError(403, "this page's origin is not allowed (--cors-origin)", code="origin_not_allowed")
        if method[0] not in CORS_METHODS:
            raise ApiError(405, f"a page may use {' and '.join(CORS_METHODS)}", code="method_not_allowed")
        headers = {
            "access-control-allow-methods": ", ".join(CORS_METHODS),
            "access-control-allow-headers": ", ".join(_header_values(scope, b"access-control-request-headers")),
            "access-control-max-age": "600",
        }
        if _header_values(scope, b"access-control-request-private-network"):
            headers["access-control-allow-private-network"] = "true"
        return [(name.encode(), value.encode("latin-1")) for name, value in headers.items() if value]

    def headers(self, scope: Scope) -> RawHeaders:
        """Return the response headers that let an allowed page read the answer."""
        if not self._origins:
            return []
        vary = [(b"vary", b"Origin")] if "*" not in self._origins else []
        origin = _header_values(scope, b"origin")
        if not origin or not self.allows(origin[0]):
            return vary
        allowed = "*" if "*" in self._origins else origin[0]
        expose = (b"access-control-expose-headers", b"x-request-id")
        return [*vary, (b"access-control-allow-origin", allowed.encode("latin-1")), expose]


def as_origin(text: str) -> str:
    """Normalise an origin as browsers send it: lower case, no trailing slash, no default port."""
    origin = text.strip().lower().rstrip("/")
    scheme, _, authority = origin.partition("://")
    return origin.removesuffix(f":{PORTS.get(scheme)}") if authority else origin


def is_origin(text: str) -> bool:
    """Return whether an option's value is an origin: `https://pages.example`, `null`, or `*` for all."""
    return text in ("*", "null") or ORIGIN.fullmatch(as_origin(text)) is not None


def as_host(text: str) -> str:
    """Normalise a host name: lower case, no trailing dot."""
    return text.lower().removesuffix(".")


def is_host(text: str) -> bool:
    """Return whether an option's value is a host name, without scheme or port."""
    parts = AUTHORITY.fullmatch(text.lower())
    return parts is not None and parts[2] is None


def _authorities(scope: Scope) -> list[str]:
    """Return the hosts that the request names. HTTP/1.0 need not name one, but no browser uses it."""
    target = authority_of(scope)
    return [*_header_values(scope, b"host"), *([] if target is None else [target])]


def _is_same_origin(url: str, scope: Scope) -> bool:
    """Return whether a page's URL or origin has the host and port that the request was sent to."""
    try:
        scheme, host, port = (parts := urlsplit(url)).scheme, parts.hostname, parts.port
    except ValueError:
        return False
    default = PORTS.get(scheme, "")
    targets = [AUTHORITY.fullmatch(authority.lower()) for authority in _authorities(scope)]
    origins = {(as_host(parts[1]).strip("[]"), parts[2] or default) for parts in targets if parts is not None}
    return bool(host) and origins == {(as_host(host or ""), str(port or default))}


def _is_cross_site(scope: Scope) -> bool:
    """Return whether `Sec-Fetch-Site` says that another site caused the request; `none` means the user did."""
    return any(value.lower() not in ("same-origin", "none") for value in _header_values(scope, b"sec-fetch-site"))


def _header_values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]
