"""Answers that come before a request has: they reach the client, whatever it is still sending. And clients that end
their side once they have asked."""

import gzip
import http.client
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.api import protocol
from llava_ref.api.limits import Limits

from .running import connect, message, rest, said, serving
from .test_stress import held, idle

HERE = Path(__file__).parent
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
LARGE = 30 * 2**20  # far more than the sockets between hold
HI = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
LONG = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"2": -100}, "n": 8}).encode()


@pytest.fixture(scope="module")
def small():
    with serving(limits=Limits(max_body=2**20), api_key="sesame") as server:
        yield server


def ask(server, body, path=CHAT, method="POST", **headers):
    """As http.client does: all is sent before the answer is looked at."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, JSON | {"authorization": "Bearer sesame"} | given)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["error"]["code"], answer.getheader("connection")
    finally:
        connection.close()


def pieces():
    for _ in range(LARGE // 2**16):
        yield b" " * 2**16


@pytest.mark.parametrize(
    "status, code, settings",
    [
        (413, "request_too_large", {}),
        (401, "invalid_api_key", {"authorization": "Bearer x"}),
        (403, "origin_not_allowed", {"origin": "http://evil.example"}),
        (403, "host_not_allowed", {"host": "evil.example"}),
        (404, "not_found", {"path": "/v1/files"}),
        (405, "method_not_allowed", {"path": "/v1/models"}),
        (405, "method_not_allowed", {"method": "PUT"}),
        (415, "unsupported_media_type", {"content_type": "multipart/form-data"}),
        (415, "unsupported_content_encoding", {"content_encoding": "br"}),
    ],
)
@pytest.mark.parametrize("body", [lambda: bytes(LARGE), pieces], ids=["length", "chunked"])
def test_an_early_answer_reaches_who_sends_first(small, body, status, code, settings):
    assert ask(small, body(), **settings) == (status, code, "close")


def test_a_bomb_is_answered(small):
    bomb = gzip.compress(bytes(2**20)) * 2 + bytes(LARGE)
    assert ask(small, bomb, content_encoding="gzip") == (413, "request_too_large", "close")


def test_what_is_not_http_is_answered_whatever_follows(small):
    with connect(small) as sock:
        sock.sendall(b"\x16\x03 hello\r\n\r\n" + bytes(LARGE))
        status, body = said(rest(sock))
    assert status == 400 and body["error"]["code"] == "invalid_http"
    with connect(small) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * LARGE)
        assert said(rest(sock))[0] == 400, "a header without an end"


def test_a_whole_request_keeps_its_connection(small):
    """The connection ends only where a part of the request is left."""
    connection = http.client.HTTPConnection(small.url.removeprefix("http://"), timeout=30)
    for key, path, status in (("", "/health", 200), ("sesame", "/no", 404), ("sesame", CHAT, 405), ("", CHAT, 401)):
        connection.request("GET", path, headers={"x-api-key": key})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("connection"), bool(answer.read())) == (status, None, True)
        assert connection.sock is not None
    connection.close()


def test_a_client_that_asks_first_is_told_before_it_sends(small):
    """`Expect: 100-continue`: the answer comes instead of 100, and after 100 where the body is wanted."""
    head = [
        "Authorization: Bearer sesame",
        "Expect: 100-continue",
        "Content-Type: application/json",
        "Connection: close",
    ]
    with connect(small) as sock:
        sock.sendall(message("POST", CHAT, b"", *head, f"Content-Length: {LARGE}"))
        answer = rest(sock)
    assert answer.startswith(b"HTTP/1.1 413") and said(answer)[1]["error"]["code"] == "request_too_large"
    with connect(small) as sock:
        sock.sendall(message("POST", CHAT, b"", *head, f"Content-Length: {len(HI)}"))
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(HI)
        assert said(rest(sock))[0] == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("header", ["X-None: 1", "Expect:", "Transfer-Encoding: chunked"])
def test_curl(small, tmp_path, header):
    (tmp_path / "large").write_bytes(bytes(LARGE))
    asked = ["-H", "authorization: Bearer sesame", "-H", "content-type: application/json", "-H", header]
    command = ["curl", "-sS", "-w", " %{http_code}", *asked, "--data-binary", f"@{tmp_path}/large", small.url + CHAT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith(" 413") and '"request_too_large"' in done.stdout, done.stderr


def test_openais_python_client(small):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{small.url}/v1", api_key="sesame", max_retries=0)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * LARGE}])
    assert caught.value.status_code == 413 and caught.value.code == "request_too_large"
    client.close()


NPM = """import OpenAI from "openai";
let calls = 0;
const counted = (...a) => { calls += 1; return fetch(...a); };
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "sesame", fetch: counted });
try { await client.chat.completions.create({ model: "m", messages: [{ role: "user", content: "x".repeat(3e7) }] }); }
catch (error) { console.log(error.status, error.code, calls); }
"""


@pytest.mark.skipif(
    shutil.which("node") is None or not (HERE / "node_modules" / "openai").is_dir(), reason="no openai package of npm"
)
def test_openais_npm_client(small):
    command = ["node", "--input-type=module", "-e", NPM, "--", "x", small.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HERE)
    assert done.stdout == "413 request_too_large 1\n", done.stderr


def test_what_is_left_is_taken_within_limits(monkeypatch):
    """Seconds, and bytes: a client that goes on and on is cut off."""
    monkeypatch.setattr(protocol.PatientProtocol, "_drain_remaining", 2**20)
    with serving(limits=Limits(max_body=1000, read_seconds=1.0)) as server:
        with connect(server) as sock:
            sock.sendall(message("POST", CHAT, b"", "Content-Type: application/json", f"Content-Length: {LARGE}"))
            assert said(rest(sock))[0] == 413, "the answer does not wait for the rest"
            server.until(lambda: not server.connections, 5)
        with connect(server) as sock, pytest.raises(ConnectionError):
            sock.sendall(message("POST", CHAT, bytes(LARGE)))


def half(server, data):
    """All that comes back to a client that ends its side once it has asked."""
    with connect(server) as sock:
        sock.sendall(data)
        sock.shutdown(1)
        return rest(sock)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_half_closed_connection_gets_its_answer(server, version):
    assert said(half(server, message("GET", "/health", version=version)))[1]["status"] == "ok"
    assert said(half(server, message("POST", CHAT, HI, version=version)))[1]["object"] == "chat.completion"
    assert said(half(server, message("POST", CHAT, b"{}", version=version)))[0] == 400
    streamed = half(server, message("POST", CHAT, HI[:-1] + b', "stream": true}', version=version))
    assert b"data: [DONE]\n\n" in streamed


def test_requests_one_after_the_other_and_then_the_end(server):
    answers = half(server, message("GET", "/health") + message("POST", CHAT, HI) + message("GET", "/v1/models"))
    assert answers.count(b"HTTP/1.1 200") == 3
    assert answers.index(b'"status"') < answers.index(b'"chat.completion"') < answers.index(b'"list"')


def test_a_half_closed_connection_ends_with_its_answer(server, monkeypatch):
    """At once, and not when an idle one would."""
    monkeypatch.setattr(protocol.PatientProtocol, "timeout_keep_alive_handler", lambda _: None)
    with held(server) as hold, connect(server) as sock:
        sock.sendall(message("POST", CHAT, HI))
        sock.shutdown(1)
        assert hold.reached.wait(10)
        server.until(lambda: any(connection._half_closed_at for connection in server.connections))
        hold.go.set()
        assert said(rest(sock))[0] == 200


@pytest.mark.parametrize("part", [b"", b"GET /hea", message("POST", CHAT, HI)[:-5]])
def test_half_a_request_gets_none(server, part):
    assert half(server, part) == b""


@pytest.mark.parametrize("stream", [b"", b', "stream": true'], ids=["whole", "stream"])
def test_a_half_closed_connection_waits_as_long_as_it_takes(server, stream, monkeypatch):
    """Asked several times whether it is still there, it hears nothing that changes the answer."""
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.1)
    with held(server) as hold, connect(server) as sock:
        sock.sendall(message("POST", CHAT, HI[:-1] + stream + b"}"))
        sock.shutdown(1)
        assert hold.reached.wait(10)
        time.sleep(1.0)
        hold.go.set()
        answer = rest(sock)
    if stream:
        lines = [line for line in answer.split(b"\n") if line.startswith(b": keep-alive")]
        assert len(lines) > 3 and b"data: [DONE]\n\n" in answer
    else:
        assert answer.count(b"HTTP/1.1 100 Continue\r\n\r\n") > 3 and said(answer)[1]["object"] == "chat.completion"


def test_http_client_reads_over_what_is_asked(server, monkeypatch):
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.05)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    with held(server) as hold:
        connection.request("POST", CHAT, HI, JSON)
        connection.sock.shutdown(1)
        assert hold.reached.wait(10)
        time.sleep(0.5)
        hold.go.set()
        assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [b"", b', "stream": true'], ids=["whole", "stream"])
def test_a_client_that_has_gone_is_found_all_the_same(monkeypatch, version, stream):
    """It looks like one that has half closed, until something is written to it."""
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.1)
    with serving(limits=Limits(ping_seconds=0.5)) as server, held(server) as hold:
        with connect(server) as sock:
            sock.sendall(message("POST", CHAT, LONG[:-1] + stream + b"}", version=version))
            assert hold.reached.wait(10)
            (job,) = [server.worker._running]
        server.until(job.cancelled.is_set, 5)
        hold.go.set()
        server.until(lambda: idle(server) and not server.connections)


def test_a_client_that_goes_later_is_found_too(monkeypatch):
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.1)
    with serving() as server, held(server) as hold:
        sock = connect(server)
        sock.sendall(message("POST", CHAT, LONG))
        sock.shutdown(1)
        assert hold.reached.wait(10)
        (job,) = [server.worker._running]
        time.sleep(0.5)
        assert not job.cancelled.is_set(), "it has only half closed"
        sock.close()
        server.until(job.cancelled.is_set, 5)


def test_the_end_of_the_server_waits_for_no_leftovers():
    """A connection whose rest is being taken does not hold up the end."""
    with serving(limits=Limits(max_body=1000)) as server, connect(server) as sock:
        sock.sendall(message("POST", CHAT, b"", "Content-Type: application/json", f"Content-Length: {LARGE}"))
        assert said(rest(sock))[0] == 413
        began = time.monotonic()
    assert time.monotonic() - began < 5 and threading.active_count() < 50
