"""Tests clients that occupy the server without using it: half-sent requests and unread answers (backpressure)."""

import json
from contextlib import ExitStack, contextmanager

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import httpx2

from llava_ref.api import protocol, worker
from llava_ref.api.limits import Allowance, Limits

from ..support.waiting import PATIENCE
from .running import connect, message, serving
from .test_stress import holding, idle

CHAT = "/v1/chat/completions"
HI = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).encode()
SCORED = {"logprobs": True, "top_logprobs": 20}
UNREAD = {"messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"2": -100}, "n": 8, "stream": True, **SCORED}
PARTS = {
    "nothing": b"",
    "line": b"POST /v1/chat",
    "header": b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-",
    "body": message("POST", CHAT, b"", "Content-Type: application/json", "Content-Length: 1000") + b"{",
    "chunk": message("POST", CHAT, b"", "Content-Type: application/json", "Transfer-Encoding: chunked") + b"5\r\n{",
    "left": message("POST", "/nothing", b"", "Content-Type: application/json", "Content-Length: 1000") + b"{",
    "answered": message("GET", "/health"),
}


@pytest.fixture
def small_buffers(monkeypatch):
    """Shrink the buffers, so that few events fill them."""
    monkeypatch.setattr(worker, "MAX_BEHIND", 8)
    monkeypatch.setattr(protocol, "WRITE_BUFFER", 4096)
    monkeypatch.setattr(protocol, "SEND_BUFFER", 4096)


@contextmanager
def many(server, count, data):
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server, 4096)) for _ in range(count)]
        for sock in socks:
            sock.sendall(data)
        yield socks


@pytest.mark.parametrize("part", PARTS)
def test_half_sent_requests_do_not_block_others(part, monkeypatch):
    """200 connections, four times the limit; the timeouts are too long to matter."""
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 50)
    with serving(limits=Limits(read_seconds=600)) as server, many(server, 100, PARTS[part]):
        assert httpx2.get(f"{server.url}/health", timeout=PATIENCE).status_code == 200
        with many(server, 100, PARTS[part]):
            assert httpx2.get(f"{server.url}/health", timeout=PATIENCE).status_code == 200
            assert (
                httpx2.post(server.url + CHAT, content=HI, headers={"content-type": "application/json"}).status_code
                == 200
            )
            assert len(server.connections) <= 51


def test_400_half_sent_requests_with_default_limits():
    with serving() as server, many(server, 200, PARTS["body"]), many(server, 200, PARTS["header"]):
        before = Limits().read_seconds / 2  # the server gives the half-sent ones up
        assert httpx2.get(f"{server.url}/health", timeout=before).status_code == 200
        assert server.chat("Hi", max_tokens=1).status_code == 200


def test_a_connection_being_answered_is_not_closed_for_others(monkeypatch):
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 10)
    with serving(limits=Limits(read_seconds=600)) as server, holding(server) as hold, connect(server) as sock:
        sock.sendall(message("POST", CHAT, HI, "Connection: close"))
        assert hold.reached.wait(PATIENCE)
        with many(server, 40, PARTS["header"]):
            assert httpx2.get(f"{server.url}/health", timeout=PATIENCE).status_code == 200
            hold.go.set()
            assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_the_file_limit_bounds_the_connections(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 4096))
    assert protocol.most_connections() == 50
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert protocol.most_connections() == protocol.MAX_CONNECTIONS


def unread(server, count=1, **more):
    """Connect clients that request megabytes and read nothing."""
    return many(server, count, message("POST", CHAT, json.dumps(UNREAD | more).encode()))


def test_an_unread_answer_does_not_block_the_model():
    """It is paused when the buffers are full, long before its end; the timeouts are too long to matter."""
    with serving(limits=Limits(write_seconds=600)) as server, unread(server):
        server.until(lambda: server.worker.busy)
        answer = server.chat("Hi", max_tokens=1)
        assert answer.status_code == 200
        (job,) = server.worker._paused
        assert job._n_produced < 1500, "of 8 times 2,000 tokens"
        server.until(lambda: not server.worker.busy)
        assert server.chat("Hi", max_tokens=1).status_code == 200


def test_a_paused_stream_resumes_with_the_same_content(server, small_buffers):
    body = UNREAD | {"n": 2, "max_tokens": 40, "temperature": 2.0, "seed": 3}
    with server.client.stream("POST", CHAT, json=body) as answer:
        whole = [_pieces(line) for line in answer.iter_lines() if line.startswith("data: {")]
    with many(server, 1, message("POST", CHAT, json.dumps(body).encode(), "Connection: close")) as (sock,):
        server.until(lambda: server.worker._paused)
        other = server.chat("What is this?", max_tokens=3, logit_bias={"2": -100}).json()
        assert other["usage"]["completion_tokens"] == 3
        file = sock.makefile("rb")
        lines = [line.decode().strip() for line in file if line.startswith(b"data: {")]
        file.close()
    assert [_pieces(line) for line in lines] == whole


def _pieces(line):
    return [(choice["index"], choice["delta"], choice["finish_reason"]) for choice in json.loads(line[6:])["choices"]]


def test_pausing_a_second_stream_cancels_the_first(small_buffers):
    """Only one stream may be paused, because each keeps the memory of a sequence."""
    with serving(limits=Limits(write_seconds=600)) as server, unread(server, 3):
        server.until(lambda: server.api._queue_places.taken == 1 and server.worker._paused)
        assert idle(server) and server.chat("Hi", max_tokens=1).status_code == 200


@pytest.mark.parametrize("settings", [{"stream": False, "max_tokens": 8}, {"max_tokens": 20}], ids=["whole", "stream"])
def test_finished_but_unread_answers_free_their_queue_places(settings, small_buffers, monkeypatch):
    """The model has finished them, so their places are free, however long it takes to send them."""
    monkeypatch.setattr(worker, "MAX_BEHIND", 1000)
    with serving(limits=Limits(write_seconds=600, max_queue=0)) as server:
        for _ in range(3):
            with unread(server, 1, **settings):
                server.until(lambda: _stalled(server) and server.api._queue_places.taken == 0)
                assert server.chat("Hi", max_tokens=1).status_code == 200 and _stalled(server)
            server.until(lambda: not _stalled(server))


def _stalled(server):
    return any(connection.flow.write_paused for connection in server.connections)


def test_a_disconnect_while_paused_frees_everything(small_buffers):
    with serving(limits=Limits(write_seconds=600)) as server:
        with unread(server):
            server.until(lambda: server.worker._paused)
        server.until(lambda: not server.worker._paused and idle(server) and not server.connections)
        server.until(lambda: server.api._queue_places.taken == 0)
        assert server.chat("Hi", max_tokens=1).status_code == 200


def test_shutdown_cancels_a_paused_stream(small_buffers):
    with serving(limits=Limits(write_seconds=600)) as server, unread(server):
        server.until(lambda: server.worker._paused)
        (job,) = server.worker._paused
        server.worker.drain(0)
        server.worker.join(PATIENCE)
        assert job.cancelled.is_set() and not server.worker.alive


def test_the_number_of_stalled_connections_is_limited(monkeypatch, small_buffers):
    """Each holds the bytes of an answer; the one that has waited longest is closed."""
    monkeypatch.setattr(protocol, "MAX_STALLED", 3)
    tokens = json.dumps({"content": "a " * 10_000, "with_pieces": True}).encode()
    with serving(limits=Limits(write_seconds=600)) as server, many(server, 8, message("POST", "/tokenize", tokens)):
        server.until(lambda: server.api.metrics._requests["/tokenize", 200] == 8)
        server.until(lambda: len(server.connections) == 3)
        assert all(connection.flow.write_paused for connection in server.connections)
        assert httpx2.get(f"{server.url}/health", timeout=PATIENCE).status_code == 200


def test_a_share_is_given_back_once():
    allowance = Allowance(10, "words")
    share = allowance.share(4)
    share.give_back()
    share.give_back()
    with allowance.share(10) as whole:
        whole.give_back()
    assert allowance.taken == 0


def test_a_client_that_keeps_reading_is_never_paused(server, monkeypatch):
    aside = []
    leave = worker.Worker._leave

    def logged(self, job, state):
        aside.extend([job] if state is worker.State.BEHIND else [])
        leave(self, job, state)

    monkeypatch.setattr(worker.Worker, "_leave", logged)
    with server.client.stream("POST", CHAT, json=UNREAD | {"max_tokens": 25}) as answer:
        assert sum(line.startswith("data: ") for line in answer.iter_lines()) > 200
    assert not aside
