"""Tests pictures given by URL: only from allowed hosts and public addresses, and with a timeout."""

import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.api import fetch
from llava_ref.api.fetch import Fetcher, is_public
from llava_ref.errors import ImageError

from .running import picture, serving

HOW_MANY = {"type": "text", "text": "Count the stars."}
WHERE = "messages[0].content[0].image_url.url"
PNG = picture("count.png")


class PictureSite(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        try:
            getattr(self, self.path.strip("/").partition("?")[0].replace(".", "_"))()
        except OSError:
            pass  # the client has closed the connection

    def count_png(self, length=None):
        self.send_response(200)
        self.send_header("Content-Length", str(len(PNG) if length is None else length))
        self.end_headers()
        self.wfile.write(PNG)

    def moved(self):
        self.send_response(302)
        self.send_header("Location", "/count.png")
        self.end_headers()

    def absent(self):
        self.send_error(404)

    def cut(self):
        self.count_png(len(PNG) + 1)

    def endless(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(20):
            self.wfile.write(bytes(2**20))

    def slow(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pictures():
    with ThreadingHTTPServer(("127.0.0.1", 0), PictureSite) as host:
        host.daemon_threads = True
        host.asked = []
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        host.url = f"http://127.0.0.1:{host.server_port}"
        yield host
        host.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def fetching():
    with serving(hosts=["127.0.0.1", "localhost"]) as server:
        yield server


def ask(server, url, **more):
    return server.chat([{"type": "image_url", "image_url": {"url": url} | more}, HOW_MANY])


def test_a_picture_from_a_literal_address(fetching, pictures):
    for url in (f"{pictures.url}/count.png?a=b%20c#d", f" {pictures.url.upper().replace('HTTP', 'http')}/count.png\n"):
        assert ask(fetching, url).json()["choices"][0]["message"]["content"] == "3"
    assert pictures.asked[0] == ("/count.png?a=b%20c", f"127.0.0.1:{pictures.server_port}")


@pytest.mark.parametrize(
    "path, words",
    [
        ("moved", "status 302, and redirects are not followed"),
        ("absent", "status 404"),
        ("cut", "could not be fetched"),
        ("endless", "over 10,485,760 bytes"),
    ],
)
def test_responses_without_a_picture_are_refused(fetching, pictures, path, words):
    answer = ask(fetching, f"{pictures.url}/{path}")
    code = "image_too_large" if path == "endless" else "invalid_image"
    assert fetching.error(answer) == (400, WHERE, code) and words in answer.json()["error"]["message"]


def test_a_slow_host_times_out(fetching, pictures, monkeypatch):
    monkeypatch.setattr(fetch, "FETCH_SECONDS", 0.3)
    answer = ask(fetching, f"{pictures.url}/slow")
    assert fetching.error(answer)[:2] == (400, WHERE)
    assert "could not be fetched within 0.3 s" in answer.json()["error"]["message"]


def test_a_closed_port(fetching):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert fetching.error(ask(fetching, f"http://127.0.0.1:{port}/"))[:2] == (400, WHERE)


def test_https_to_a_plain_http_port(fetching, pictures):
    assert fetching.error(ask(fetching, f"https://127.0.0.1:{pictures.server_port}/count.png"))[:2] == (400, WHERE)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return paths of a self-signed certificate for pictures.example and of its key."""
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "made.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pictures.example"
    command += f" -addext subjectAltName=DNS:pictures.example -out {made[0]} -keyout {made[1]}"
    subprocess.run(command.split(), check=True, capture_output=True, timeout=60)
    return made


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls_verifies_the_host_name(certificate, pictures, monkeypatch):
    """The connection goes to the checked address; certificate, SNI and Host use the name."""
    names, context = [], ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.sni_callback = lambda _, name, __: names.append(name)
    here = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, port, *__, **___: [(*here, ("127.0.0.1", port))])
    monkeypatch.setattr(fetch, "is_public", lambda address: str(address) == "127.0.0.1")
    trusting, strange = (Fetcher(("pictures.example", "other.example")) for _ in range(2))
    trusting._tls.load_verify_locations(certificate[0])
    with ThreadingHTTPServer(("127.0.0.1", 0), PictureSite) as host:
        host.asked, host.socket = [], context.wrap_socket(host.socket, server_side=True)
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        try:
            assert trusting(f"https://pictures.example:{host.server_port}/count.png", "here") == PNG
            assert host.asked == [("/count.png", f"pictures.example:{host.server_port}")]
            for fetcher, name in ((trusting, "other.example"), (strange, "pictures.example")):
                with pytest.raises(ImageError, match="could not be fetched"):
                    fetcher(f"https://{name}:{host.server_port}/count.png", "here")
            assert names == ["pictures.example", "other.example", "pictures.example"] and len(host.asked) == 1
        finally:
            host.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png",
        "http://127.0.0.2/a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://127.1/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://127.0.0.1.example.com/a.png",
        "http://127.0.0.1@example.com/a.png",
        "http://example.com\\@127.0.0.1/a.png",
        "http://user:word@127.0.0.1/a.png",
        "http://127.0.0.1:99999/a.png",
        "http://127.0.0.1/a b.png",
        "http://127.0.0.1/a\r\nHost: b",
        "http:///a.png",
        "http://127.0.0.1/" + "a" * 9000,
        "https:127.0.0.1",
        "http://127。0。0。1/a.png",
    ],
)
def test_other_hosts_and_ambiguous_urls_are_refused(fetching, pictures, url):
    before = len(pictures.asked)
    answer = ask(fetching, url)
    assert fetching.error(answer)[:2] == (400, WHERE)
    assert "could not be fetched" not in answer.json()["error"]["message"], "refused before a connection"
    assert len(pictures.asked) == before


def test_a_name_must_have_public_addresses_only(fetching, pictures):
    answer = ask(fetching, f"http://localhost:{pictures.server_port}/count.png")
    assert fetching.error(answer)[:2] == (400, WHERE) and "not public" in answer.json()["error"]["message"]


def test_one_private_address_refuses_the_host(monkeypatch):
    def resolved(*addresses):
        entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)

    connected = []

    def refuse(address, timeout):
        connected.append(address)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", refuse)
    fetcher = Fetcher(("pictures.example",))
    resolved("93.184.216.34", "10.0.0.1")
    with pytest.raises(ImageError, match="not public"):
        fetcher("http://pictures.example/a.png", "here")
    assert not connected
    resolved("93.184.216.34")
    with pytest.raises(ImageError, match="could not be fetched"):
        fetcher("https://PICTURES.example:8443/a.png", "here")
    assert connected == [("93.184.216.34", 8443)], "the checked address, without resolving the name again"


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 "
    "240.0.0.1 192.0.0.10 ::1 :: fe80::1 fc00::1 fec0::1 ff02::1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::10.0.0.1 "
    "2002:7f00:1:: 2001:0:0:0:0:0:0:1 2001:db8::1 64:ff9b:1::1".split(),
)
def test_private_addresses(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", "93.184.216.34 8.8.8.8 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::8.8.8.8".split())
def test_public_addresses(address):
    assert is_public(ipaddress.ip_address(address))


def test_a_refused_request_fetches_nothing(fetching, pictures):
    before = len(pictures.asked)
    url = {"type": "image_url", "image_url": {"url": f"{pictures.url}/count.png"}}
    assert fetching.chat([url, {"type": "audio"}]).status_code == 400
    assert fetching.chat([url] * 17).status_code == 400
    assert fetching.chat([url], top_logprobs=1).status_code == 400
    assert len(pictures.asked) == before
