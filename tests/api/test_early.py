"""Tests answers sent before the whole request has arrived, which must reach a client that is still sending.

Also tests clients that half-close their connection after the request, and how a disconnect is told apart from that."""

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

from ..support.waiting import PATIENCE
from .running import connect, message, parse_response, read_all, serving
from .test_stress import holding, idle

HERE = Path(__file__).parent
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
LARGE = 30 * 2**20  # far more than the socket buffers hold
HI = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
LONG = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"2": -100}, "n": 8}).encode()


@pytest.fixture(scope="module")
def small():
    with serving(limits=Limits(max_body=2**20), api_key="sesame") as server:
        yield server


def ask(server, body, path=CHAT, method="POST", **headers):
    """Send a whole request before reading the answer, as http.client does; returns status, code, connection header."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
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
def test_an_early_answer_reaches_a_client_that_is_still_sending(small, body, status, code, settings):
    assert ask(small, body(), **settings) == (status, code, "close")


def test_a_decompression_bomb_is_answered(small):
    bomb = gzip.compress(bytes(2**20)) * 2 + bytes(LARGE)
    assert ask(small, bomb, content_encoding="gzip") == (413, "request_too_large", "close")


def test_invalid_http_is_answered_whatever_follows(small):
    with connect(small) as sock:
        sock.sendall(b"\x16\x03 hello\r\n\r\n" + bytes(LARGE))
        status, body = parse_response(read_all(sock))
    assert status == 400 and body["error"]["code"] == "invalid_http"
    with connect(small) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * LARGE)
        assert parse_response(read_all(sock))[0] == 400, "a header without an end"


def test_a_complete_request_keeps_its_connection_open(small):
    """The connection is closed only if a part of the request is unread."""
    connection = http.client.HTTPConnection(small.url.removeprefix("http://"), timeout=PATIENCE)
    for key, path, status in (("", "/health", 200), ("sesame", "/no", 404), ("sesame", CHAT, 405), ("", CHAT, 401)):
        connection.request("GET", path, headers={"x-api-key": key})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("connection"), bool(answer.read())) == (status, None, True)
        assert connection.sock is not None
    connection.close()


def test_expect_100_continue_is_answered_before_the_body(small):
    """An early answer comes instead of 100 (Continue); if the body is wanted, 100 comes first."""
    head = [
        "Authorization: Bearer sesame",
        "Expect: 100-continue",
        "Content-Type: application/json",
        "Connection: close",
    ]
    with connect(small) as sock:
        sock.sendall(message("POST", CHAT, b"", *head, f"Content-Length: {LARGE}"))
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 413") and parse_response(answer)[1]["error"]["code"] == "request_too_large"
    with connect(small) as sock:
        sock.sendall(message("POST", CHAT, b"", *head, f"Content-Length: {len(HI)}"))
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(HI)
        assert parse_response(read_all(sock))[0] == 200


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


def test_the_rest_of_a_request_is_read_within_limits(monkeypatch):
    """Both time and bytes are limited: a client that sends on and on is disconnected."""
    monkeypatch.setattr(protocol.PatientProtocol, "_drain_remaining", 2**20)
    with serving(limits=Limits(max_body=1000, read_seconds=1.0)) as server:
        with connect(server) as sock:
            sock.sendall(message("POST", CHAT, b"", "Content-Type: application/json", f"Content-Length: {LARGE}"))
            assert parse_response(read_all(sock))[0] == 413, "the answer does not wait for the rest"
            server.until(lambda: not server.connections)
        with connect(server) as sock, pytest.raises(ConnectionError):
            sock.sendall(message("POST", CHAT, bytes(LARGE)))


def half(server, data):
    """Send data, half-close the connection, and return everything that comes back."""
    with connect(server) as sock:
        sock.sendall(data)
        sock.shutdown(1)
        return read_all(sock)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_half_closed_connection_gets_its_answer(server, version):
    assert parse_response(half(server, message("GET", "/health", version=version)))[1]["status"] == "ok"
    assert parse_response(half(server, message("POST", CHAT, HI, version=version)))[1]["object"] == "chat.completion"
    assert parse_response(half(server, message("POST", CHAT, b"{}", version=version)))[0] == 400
    streamed = half(server, message("POST", CHAT, HI[:-1] + b', "stream": true}', version=version))
    assert b"data: [DONE]\n\n" in streamed


def test_pipelined_requests_before_a_half_close_are_all_answered(server):
    answers = half(server, message("GET", "/health") + message("POST", CHAT, HI) + message("GET", "/v1/models"))
    assert answers.count(b"HTTP/1.1 200") == 3
    assert answers.index(b'"status"') < answers.index(b'"chat.completion"') < answers.index(b'"list"')


def test_a_half_closed_connection_is_closed_after_its_answer(server, monkeypatch):
    """It is closed at once, not after the keep-alive timeout."""
    monkeypatch.setattr(protocol.PatientProtocol, "timeout_keep_alive_handler", lambda _: None)
    with holding(server) as hold, connect(server) as sock:
        sock.sendall(message("POST", CHAT, HI))
        sock.shutdown(1)
        assert hold.reached.wait(PATIENCE)
        server.until(lambda: any(connection._half_closed_at for connection in server.connections))
        hold.go.set()
        assert parse_response(read_all(sock))[0] == 200


@pytest.mark.parametrize("part", [b"", b"GET /hea", message("POST", CHAT, HI)[:-5]])
def test_an_incomplete_request_gets_no_answer(server, part):
    assert half(server, part) == b""


@pytest.mark.parametrize(
    "stream, probe",
    [(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (b', "stream": true', b": keep-alive\n")],
    ids=["whole", "stream"],
)
def test_a_half_closed_connection_is_kept_while_the_answer_is_computed(server, stream, probe, monkeypatch):
    """It is probed several times, and the probes do not change the answer."""
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.1)
    with holding(server) as hold, connect(server) as sock:
        sock.sendall(message("POST", CHAT, HI[:-1] + stream + b"}"))
        sock.shutdown(1)
        assert hold.reached.wait(PATIENCE)
        answer = b""
        while answer.count(probe) < 4:
            assert (data := sock.recv(65536)), "the connection was closed"
            answer += data
        hold.go.set()
        answer += read_all(sock)
    if stream:
        assert b"data: [DONE]\n\n" in answer
    else:
        assert parse_response(answer)[1]["object"] == "chat.completion"


def test_http_client_ignores_the_probes(server, monkeypatch):
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.05)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    with holding(server) as hold:
        connection.request("POST", CHAT, HI, JSON)
        connection.sock.shutdown(1)
        assert hold.reached.wait(PATIENCE)
        time.sleep(0.5)
        hold.go.set()
        assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [b"", b', "stream": true'], ids=["whole", "stream"])
def test_a_disconnect_is_detected_although_it_looks_like_a_half_close(monkeypatch, version, stream):
    """It looks like a half-close until something is written to it."""
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.1)
    with serving(limits=Limits(ping_seconds=0.5)) as server, holding(server) as hold:
        with connect(server) as sock:
            sock.sendall(message("POST", CHAT, LONG[:-1] + stream + b"}", version=version))
            assert hold.reached.wait(PATIENCE)
            (job,) = server.worker._running
        server.until(job.cancelled.is_set)
        hold.go.set()
        server.until(lambda: idle(server) and not server.connections)


def test_a_disconnect_after_a_half_close_is_detected(monkeypatch):
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.1)
    with serving() as server, holding(server) as hold:
        sock = connect(server)
        sock.sendall(message("POST", CHAT, LONG))
        sock.shutdown(1)
        assert hold.reached.wait(PATIENCE)
        (job,) = server.worker._running
        time.sleep(0.5)
        assert not job.cancelled.is_set(), "it has only half closed"
        sock.close()
        server.until(job.cancelled.is_set)


def test_shutdown_does_not_wait_for_unread_rests():
    """A connection whose remaining request is still being read does not delay the shutdown."""
    limits = Limits(max_body=1000)
    with serving(limits=limits) as server:
        sock = connect(server)
        sock.sendall(message("POST", CHAT, b"", "Content-Type: application/json", f"Content-Length: {LARGE}"))
        assert parse_response(read_all(sock))[0] == 413
        began = time.monotonic()
    assert time.monotonic() - began < limits.read_seconds / 2 and threading.active_count() < 50
    sock.close()
