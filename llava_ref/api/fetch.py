"""Fetches pictures from http and https URLs, only from hosts that the operator allowed.

One parser reads the URL. A host name is resolved once, all its addresses must be public, and the connection goes to an
address that was checked; TLS and the Host header use the name. A literal address that the operator allowed may be
private. Redirects, proxies and cookies are not used.
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
FETCH_SECONDS = 10.0  # timeout for one picture, from the first packet to the last
HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
URL_CHARACTERS = re.compile(r"[!-\[\]-~]+")  # printable ASCII but no backslash: some parsers take it for a slash
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# networks of IANA's special-purpose registries that Python 3.11 takes for public
NOT_PUBLIC = tuple(map(ipaddress.ip_network, "192.0.0.0/24 192.88.99.0/24 64:ff9b:1::/48 2001::/23 3fff::/20".split()))


class Fetcher:
    """Fetches a picture: `fetch(url, where)` -> bytes. Raises ImageError, which names `where`.

    `hosts`: the allowed host names and addresses, as written in URLs."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        self._hosts = {host.strip("[]").lower() for host in hosts}
        self._tls = ssl.create_default_context()

    def __call__(self, url: str, where: str) -> bytes:
        parts, host, port = self._parse(url, where)
        try:
            connection = self._connect(host, port, parts.scheme == "https", where)
            try:
                return _read(connection, parts, where)
            finally:
                connection.end()
        except (OSError, HTTPException, ValueError):
            raise ImageError(where, "URL", f"could not be fetched within {FETCH_SECONDS:g} s") from None

    def _parse(self, url: str, where: str) -> tuple[SplitResult, str, int]:
        if not URL_CHARACTERS.fullmatch(url) or len(url) > 8192:
            raise ImageError(where, "URL", "has over 8,192 characters, or one that a URL must not have")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise ImageError(where, "URL", "is not valid") from None
        if parts.scheme not in ("http", "https") or "@" in parts.netloc:
            raise ImageError(where, "URL", "expected http or https, without a user name")
        if host not in self._hosts or not (HOST_NAME.fullmatch(host) or literal_address(host)):
            raise ImageError(where, "URL", "its host is not one that this server may fetch from (--allow-image-host)")
        return parts, host, port or (443 if parts.scheme == "https" else 80)

    def _connect(self, host: str, port: int, tls: bool, where: str) -> "_Connection":
        address = str(literal_address(host) or _resolve(host, port, where))
        connection = _Connection(host, port, socket.create_connection((address, port), FETCH_SECONDS))
        if tls:
            try:
                connection.secure(self._tls)
            except BaseException:
                connection.end()
                raise
        return connection


class _Connection(HTTPConnection):
    """An HTTP connection over a connected socket, which is shut down after FETCH_SECONDS.

    `late`: whether that has happened. A body without a length looks complete then."""

    _socket: socket.socket
    late = False

    def __init__(self, host: str, port: int, sock: socket.socket) -> None:
        super().__init__(host, port, timeout=FETCH_SECONDS)
        self.sock = self._socket = sock
        self._timer = threading.Timer(FETCH_SECONDS, self._shut_down)
        self._timer.daemon = True
        self._timer.start()

    def secure(self, context: ssl.SSLContext) -> None:
        """Start TLS for the host's name. The handshake is within the timeout too."""
        self.sock = self._socket = context.wrap_socket(
            self._socket, server_hostname=self.host, do_handshake_on_connect=False
        )
        self._socket.do_handshake()

    def connect(self) -> None:
        raise OSError("the connection is not opened a second time")

    def _shut_down(self) -> None:
        self.late = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Close the socket. The base class calls `close` as soon as the header has arrived, which is too early."""
        self._timer.cancel()
        self.close()
        self._socket.close()


def literal_address(host: str) -> Address | None:
    """Return `host` as an address if it is a literal one, else None."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _resolve(host: str, port: int, where: str) -> Address:
    """Return the first address of a host name. Raises ImageError unless all its addresses are public."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in entries]
    if not addresses or not all(is_public(address) for address in addresses):
        raise ImageError(where, "URL", "its host has an address that is not public")
    return addresses[0]


def is_public(address: Address) -> bool:
    """Return whether an address, and any IPv4 address embedded in it (mapped, 6to4, Teredo, NAT64), is public."""
    addresses: list[Address | None] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        addresses += [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in NAT64:
            addresses.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.is_site_local or int(address) >> 32 == 0:  # obsolete: site-local, IPv4-compatible; also :: and ::1
            return False
    if any(a in network for a in addresses if a is not None for network in NOT_PUBLIC):
        return False
    return all(a is None or (a.is_global and not a.is_multicast) for a in addresses)


def _read(connection: _Connection, parts: SplitResult, where: str) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request(
        "GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
    )
    response = connection.getresponse()
    with closing(response):
        if response.status != 200:
            note = ", and redirects are not followed" if 300 <= response.status < 400 else ""
            raise ImageError(where, "URL", f"answered with status {response.status}{note}")
        data = _response_body(response)
    if connection.late:
        raise TimeoutError("the body has not come in time")
    if len(data) > MAX_FETCHED:
        raise ImageError(where, "size", f"over {MAX_FETCHED:,} bytes at that URL", code="image_too_large")
    return data


def _response_body(response: HTTPResponse) -> bytes:
    data = response.read(MAX_FETCHED + 1)
    if response.length and len(data) <= MAX_FETCHED:
        raise HTTPException("the body is truncated")
    return data
