"""Clients that keep a place without using it: half-sent requests, answers that nobody reads."""

import json
from contextlib import ExitStack, contextmanager

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import httpx2

from llava_ref.api import protocol, worker
from llava_ref.api.limits import Allowance, Limits

from .running import connect, message, serving
from .test_stress import held, idle

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
def tight(monkeypatch):
    """Small buffers, so that little has to be made until they are full."""
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
def test_half_sent_requests_keep_nobody_out(part, monkeypatch):
    """200 of them, four times what the server holds; the limits on time are far off."""
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 50)
    with serving(limits=Limits(read_seconds=600)) as server, many(server, 100, PARTS[part]):
        assert httpx2.get(f"{server.url}/health", timeout=10).status_code == 200
        with many(server, 100, PARTS[part]):
            assert httpx2.get(f"{server.url}/health", timeout=10).status_code == 200
            assert (
                httpx2.post(server.url + CHAT, content=HI, headers={"content-type": "application/json"}).status_code
                == 200
            )
            assert len(server.connections) <= 51


def test_200_half_sent_requests_as_it_stands():
    with serving() as server, many(server, 200, PARTS["body"]), many(server, 200, PARTS["header"]):
        assert httpx2.get(f"{server.url}/health", timeout=10).status_code == 200
        assert server.chat("Hi", max_tokens=1).status_code == 200


def test_a_request_being_answered_makes_no_room(monkeypatch):
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 10)
    with serving(limits=Limits(read_seconds=600)) as server, held(server) as hold, connect(server) as sock:
        sock.sendall(message("POST", CHAT, HI, "Connection: close"))
        assert hold.reached.wait(10)
        with many(server, 40, PARTS["header"]):
            assert httpx2.get(f"{server.url}/health", timeout=10).status_code == 200
            hold.go.set()
            assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_few_files_mean_few_connections(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 4096))
    assert protocol.most_connections() == 50
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert protocol.most_connections() == protocol.MAX_CONNECTIONS


def unread(server, count=1, **more):
    """Clients that ask for megabytes and read nothing."""
    return many(server, count, message("POST", CHAT, json.dumps(UNREAD | more).encode()))


def test_an_answer_that_nobody_reads_holds_no_model():
    """It is set aside after what the buffers hold: far from its end, and with all limits on time far off."""
    with serving(limits=Limits(write_seconds=600)) as server, unread(server):
        server.until(lambda: server.worker.busy)
        answer = server.chat("Hi", max_tokens=1)
        assert answer.status_code == 200
        job = server.worker._paused
        assert job is not None and job._n_produced < 1500, "of 8 times 2,000 tokens"
        server.until(lambda: not server.worker.busy)
        assert server.chat("Hi", max_tokens=1).status_code == 200


def test_what_was_set_aside_goes_on_and_is_what_it_would_have_been(server, tight):
    body = UNREAD | {"n": 2, "max_tokens": 40, "temperature": 2.0, "seed": 3}
    with server.client.stream("POST", CHAT, json=body) as answer:
        whole = [_pieces(line) for line in answer.iter_lines() if line.startswith("data: {")]
    with many(server, 1, message("POST", CHAT, json.dumps(body).encode(), "Connection: close")) as (sock,):
        server.until(lambda: server.worker._paused is not None, 60)
        other = server.chat("What is this?", max_tokens=3, logit_bias={"2": -100}).json()
        assert other["usage"]["completion_tokens"] == 3
        file = sock.makefile("rb")
        lines = [line.decode().strip() for line in file if line.startswith(b"data: {")]
        file.close()
    assert [_pieces(line) for line in lines] == whole


def _pieces(line):
    return [(choice["index"], choice["delta"], choice["finish_reason"]) for choice in json.loads(line[6:])["choices"]]


def test_one_answer_is_set_aside_and_the_one_before_it_given_up(tight):
    """Each keeps the memory of a sequence."""
    with serving(limits=Limits(write_seconds=600)) as server, unread(server, 3):
        server.until(lambda: server.api._queue_places.taken == 1 and server.worker._paused is not None, 60)
        assert idle(server) and server.chat("Hi", max_tokens=1).status_code == 200


@pytest.mark.parametrize("settings", [{"stream": False, "max_tokens": 8}, {"max_tokens": 20}], ids=["whole", "stream"])
def test_unread_answers_leave_the_queue(settings, tight, monkeypatch):
    """The model is done with them: their places are free, however long the sending takes."""
    monkeypatch.setattr(worker, "MAX_BEHIND", 1000)
    with serving(limits=Limits(write_seconds=600, max_queue=0)) as server:
        for _ in range(3):
            with unread(server, 1, **settings):
                server.until(lambda: _stalled(server) and server.api._queue_places.taken == 0, 60)
                assert server.chat("Hi", max_tokens=1).status_code == 200 and _stalled(server)
            server.until(lambda: not _stalled(server))


def _stalled(server):
    return any(connection.flow.write_paused for connection in server.connections)


def test_a_client_that_goes_while_set_aside_leaves_nothing(tight):
    with serving(limits=Limits(write_seconds=600)) as server:
        with unread(server):
            server.until(lambda: server.worker._paused is not None, 60)
        server.until(lambda: server.worker._paused is None and idle(server) and not server.connections)
        server.until(lambda: server.api._queue_places.taken == 0)
        assert server.chat("Hi", max_tokens=1).status_code == 200


def test_the_end_of_the_server_ends_what_is_set_aside(tight):
    with serving(limits=Limits(write_seconds=600)) as server, unread(server):
        server.until(lambda: server.worker._paused is not None, 60)
        job = server.worker._paused
        server.worker.drain(0)
        server.worker.join(10)
        assert job.cancelled.is_set() and not server.worker.alive


def test_few_may_leave_their_answers_unread(monkeypatch, tight):
    """Each holds the bytes of an answer; the one that has waited longest goes."""
    monkeypatch.setattr(protocol, "MAX_STALLED", 3)
    tokens = json.dumps({"content": "a " * 10_000, "with_pieces": True}).encode()
    with serving(limits=Limits(write_seconds=600)) as server, many(server, 8, message("POST", "/tokenize", tokens)):
        server.until(lambda: server.api.metrics._requests["/tokenize", 200] == 8, 60)
        server.until(lambda: len(server.connections) == 3)
        assert all(connection.flow.write_paused for connection in server.connections)
        assert httpx2.get(f"{server.url}/health", timeout=10).status_code == 200


def test_a_share_is_given_back_once():
    allowance = Allowance(10, "words")
    share = allowance.share(4)
    share.give_back()
    share.give_back()
    with allowance.share(10) as whole:
        whole.give_back()
    assert allowance.taken == 0


def test_a_reader_that_keeps_up_is_never_set_aside(server, monkeypatch):
    aside = []
    monkeypatch.setattr(worker.Worker, "_pause", lambda _, job: aside.append(job))
    with server.client.stream("POST", CHAT, json=UNREAD | {"max_tokens": 25}) as answer:
        assert sum(line.startswith("data: ") for line in answer.iter_lines()) > 200
    assert not aside
