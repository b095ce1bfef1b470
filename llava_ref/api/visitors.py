"""Which web pages may call the server, and by which names: `Host`, `Origin`, `Sec-Fetch-Site` and preflights.

A page that somebody visits can make the browser send requests to this machine. It cannot choose these headers:
`Origin` and `Sec-Fetch-Site` tell where a page is from, and `Host` is the name in its address, so a name that an
attacker's DNS server points at this machine (DNS rebinding) shows there.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from .errors import ApiError
from .fetch import literal
from .targets import authority_of

READING = ("GET", "HEAD", "OPTIONS")
CHANGING = ("/inferences/llamacpp/loadmodel", "/inferences/llamacpp/unloadmodel")  # by GET too
METHODS = ("GET", "POST")  # that a page may use
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/?#\s]+)(?::([0-9]*))?")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
PORTS = {"http": "80", "https": "443"}
Scope = Mapping[str, Any]
Raw = list[tuple[bytes, bytes]]


class Visitors:
    """The rules of one server. `origins`: pages that may call, `*` for all. `hosts`: names it answers to beside
    address literals and localhost; None: to every name."""

    def __init__(self, origins: Iterable[str] = (), hosts: Iterable[str] | None = None) -> None:
        self._origins = {as_origin(origin) for origin in origins}
        self._hosts = None if hosts is None else {as_host(host) for host in hosts}

    def check(self, scope: Scope) -> None:
        """Raise ApiError 403 for a foreign `Host`, and for a request of a foreign page that changes something."""
        for authority in _authorities(scope) if self._hosts is not None else ():
            if not self._knows(authority):
                problem = f"the host {authority!r} is not one that this server answers to (--allow-host)"
                raise ApiError(403, problem, code="host_not_allowed")
        if (scope["method"] not in READING or scope["path"] in CHANGING) and self._is_foreign(scope):
            problem = "the request comes from a web page of another origin (--cors-origin)"
            raise ApiError(403, problem, code="origin_not_allowed")

    def _knows(self, authority: str) -> bool:
        parts = AUTHORITY.fullmatch(authority.lower())
        host = "" if parts is None else as_host(parts[1])
        local = host == "localhost" or host.endswith(".localhost")
        return local or literal(host.strip("[]")) is not None or host in (self._hosts or ())

    def _is_foreign(self, scope: Scope) -> bool:
        """Whether a page that is not named sent this. A program that is no browser sends none of these headers; an
        old browser sends no more than `Referer` with the address of an image."""
        if "*" in self._origins:
            return False
        pages = _values(scope, b"origin") or _values(scope, b"referer")
        unnamed = [page for page in pages if not self.allows("/".join(page.split("/", 3)[:3]))]
        if pages and not unnamed:
            return False
        return not all(_is_own(page, scope) for page in unnamed) or _comes_from_elsewhere(scope)

    def allows(self, origin: str) -> bool:
        """Return whether the operator named this page's origin."""
        return "*" in self._origins or as_origin(origin) in self._origins

    def preflight(self, scope: Scope) -> Raw | None:
        """Return the headers that answer a browser's question before a call; None if it asks none.

        Raises ApiError for a page or method that may not call."""
        origin, method = _values(scope, b"origin"), _values(scope, b"access-control-request-method")
        if scope["method"] != "OPTIONS" or not origin or not method:
            return None
        if not self.allows(origin[0]):
            raise ApiError(403, "this page's origin is not allowed (--cors-origin)", code="origin_not_allowed")
        if method[0] not in METHODS:
            raise ApiError(405, f"a page may use {' and '.join(METHODS)}", code="method_not_allowed")
        headers = {
            "access-control-allow-methods": ", ".join(METHODS),
            "access-control-allow-headers": ", ".join(_values(scope, b"access-control-request-headers")),
            "access-control-max-age": "600",
        }
        if _values(scope, b"access-control-request-private-network"):
            headers["access-control-allow-private-network"] = "true"
        return [(name.encode(), value.encode("latin-1")) for name, value in headers.items() if value]

    def headers(self, scope: Scope) -> Raw:
        """Return the headers by which a named page may read the answer."""
        if not self._origins:
            return []
        vary = [(b"vary", b"Origin")] if "*" not in self._origins else []
        origin = _values(scope, b"origin")
        if not origin or not self.allows(origin[0]):
            return vary
        named = "*" if "*" in self._origins else origin[0]
        expose = (b"access-control-expose-headers", b"x-request-id")
        return [*vary, (b"access-control-allow-origin", named.encode("latin-1")), expose]


def as_origin(text: str) -> str:
    """Return an origin in the form that browsers send: lower case, no slash at the end, no default port."""
    origin = text.strip().lower().rstrip("/")
    scheme, _, authority = origin.partition("://")
    return origin.removesuffix(f":{PORTS.get(scheme)}") if authority else origin


def is_origin(text: str) -> bool:
    """Return whether an operator's word names an origin: `https://pages.example`, `null`, or `*` for all."""
    return text in ("*", "null") or ORIGIN.fullmatch(as_origin(text)) is not None


def as_host(text: str) -> str:
    """Return a host's name in lower case, without the dot that may end it."""
    return text.lower().removesuffix(".")


def is_host(text: str) -> bool:
    """Return whether an operator's word is a host's name, without scheme or port."""
    parts = AUTHORITY.fullmatch(text.lower())
    return parts is not None and parts[2] is None


def _authorities(scope: Scope) -> list[str]:
    """Return all that say which host is meant. HTTP/1.0 may say nothing; no browser speaks it."""
    target = authority_of(scope)
    return [*_values(scope, b"host"), *([] if target is None else [target])]


def _is_own(url: str, scope: Scope) -> bool:
    """Return whether a page's URL or origin is on the host and port that the request was sent to."""
    try:
        scheme, host, port = (parts := urlsplit(url)).scheme, parts.hostname, parts.port
    except ValueError:
        return False
    default = PORTS.get(scheme, "")
    asked = [AUTHORITY.fullmatch(authority.lower()) for authority in _authorities(scope)]
    ours = {(as_host(parts[1]).strip("[]"), parts[2] or default) for parts in asked if parts is not None}
    return bool(host) and ours == {(as_host(host or ""), str(port or default))}


def _comes_from_elsewhere(scope: Scope) -> bool:
    """`none`: a person typed the address."""
    return any(value.lower() not in ("same-origin", "none") for value in _values(scope, b"sec-fetch-site"))


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]
