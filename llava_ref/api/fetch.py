"""Pictures at http and https addresses, from hosts that the operator named; every other one is refused.

One parser reads the address. A name is resolved once; all its addresses must be public, and the connection goes to one
of those that were checked, with the name kept for TLS and the Host header. An address that the operator gave literally
is taken as given. No redirects, no proxies, no cookies.
"""

import ipaddress
import re
import socket
import ssl
import threading
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import SplitResult, urlsplit

from ..errors import ImageError

MAX_FETCHED = 10 * 2**20  # bytes of one picture
FETCH_SECONDS = 10.0  # for one picture, from the first packet to the last
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII but the backslash, which some parsers read as a slash
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# not for the public either (IANA's special-purpose registries), which Python 3.11 does not know
SPECIAL = tuple(map(ipaddress.ip_network, "192.0.0.0/24 192.88.99.0/24 64:ff9b:1::/48 2001::/23 3fff::/20".split()))


class Fetcher:
    """`fetch(url, where)` -> bytes; ImageError names `where`. `hosts`: names and addresses, as they stand in URLs."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        self._hosts = {host.strip("[]").lower() for host in hosts}
        self._tls = ssl.create_default_context()

    def __call__(self, url: str, where: str) -> bytes:
        parts, host, port = self._parsed(url, where)
        try:
            connection = self._connected(host, port, parts.scheme == "https", where)
            try:
                return _read(connection, parts, where)
            finally:
                connection.end()
        except (OSError, HTTPException, ValueError):
            raise ImageError(where, "URL", f"could not be fetched within {FETCH_SECONDS:g} s") from None

    def _parsed(self, url: str, where: str) -> tuple[SplitResult, str, int]:
        if not PLAIN.fullmatch(url) or len(url) > 8192:
            raise ImageError(where, "URL", "has characters that do not belong there, or over 8,192")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise ImageError(where, "URL", "cannot be read") from None
        if parts.scheme not in ("http", "https") or "@" in parts.netloc:
            raise ImageError(where, "URL", "expected http or https, without a user name")
        if host not in self._hosts or not (NAME.fullmatch(host) or literal(host)):
            raise ImageError(where, "URL", "its host is not one that this server may fetch from (--allow-image-host)")
        return parts, host, port or (443 if parts.scheme == "https" else 80)

    def _connected(self, host: str, port: int, tls: bool, where: str) -> "_Connection":
        address = str(literal(host) or _resolved(host, port, where))
        connection = _Connection(host, port, socket.create_connection((address, port), FETCH_SECONDS))
        if tls:
            try:
                connection.secure(self._tls)
            except BaseException:
                connection.end()
                raise
        return connection


class _Connection(HTTPConnection):
    """Over a socket that is already connected; everything on it ends with the time."""

    _last: socket.socket

    def __init__(self, host: str, port: int, sock: socket.socket) -> None:
        super().__init__(host, port, timeout=FETCH_SECONDS)
        self.sock = self._last = sock
        self._timer = threading.Timer(FETCH_SECONDS, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def secure(self, context: ssl.SSLContext) -> None:
        """TLS with the host's own name. The handshake, too, ends with the time."""
        self.sock = self._last = context.wrap_socket(
            self._last, server_hostname=self.host, do_handshake_on_connect=False
        )
        self._last.do_handshake()

    def connect(self) -> None:
        raise OSError("never a second time")

    def _cut(self) -> None:
        with suppress(OSError):
            self._last.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """`close` is called by the base class as soon as the header has come."""
        self._timer.cancel()
        self.close()
        self._last.close()


def literal(host: str) -> Address | None:
    """The address that `host` is, if it is one."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _resolved(host: str, port: int, where: str) -> Address:
    """ImageError unless every address of the name is public."""
    found = [ipaddress.ip_address(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not all(is_public(address) for address in found):
        raise ImageError(where, "URL", "its host has an address that is not public")
    return found[0]


def is_public(address: Address) -> bool:
    """Also of the address inside one: IPv4 in IPv6 in its several forms."""
    inner: list[Address | None] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inner += [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.is_site_local or int(address) >> 32 == 0:  # old forms of private, and of IPv4
            return False
    if any(a in network for a in inner if a is not None for network in SPECIAL):
        return False
    return all(a is None or (a.is_global and not a.is_multicast) for a in inner)


def _read(connection: HTTPConnection, parts: SplitResult, where: str) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request(
        "GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
    )
    response = connection.getresponse()
    with closing(response):
        if response.status != 200:
            note = ", and redirects are not followed" if 300 <= response.status < 400 else ""
            raise ImageError(where, "URL", f"answered with status {response.status}{note}")
        data = _body(response)
    if len(data) > MAX_FETCHED:
        raise ImageError(where, "size", f"over {MAX_FETCHED:,} bytes at that URL")
    return data


def _body(response: HTTPResponse) -> bytes:
    data = response.read(MAX_FETCHED + 1)
    if response.length and len(data) <= MAX_FETCHED:
        raise HTTPException("cut short")
    return data
