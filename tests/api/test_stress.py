"""Tests disconnects, the queue, timeouts and allowances, failures of the worker, and shutdown."""

import http.client
import io
import json
import os
import socket
import threading
from contextlib import contextmanager

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import httpx2
from PIL import Image

from llava_ref.api.errors import ApiError
from llava_ref.api.limits import Allowance, Limits
from llava_ref.tracing.trace import Probe

from ..support.waiting import PATIENCE
from .running import data_uri, picture, serving

HI = [{"role": "user", "content": "Hi"}]
LONG = {"messages": HI, "logit_bias": {"2": -100}}  # generates until the context is full
SEE = [
    {"type": "image_url", "image_url": {"url": data_uri(picture("count.png"))}},
    {"type": "text", "text": "Count the stars."},
]


class Hold(Probe):
    """Blocks the forward pass at every array of a name until `go` is set."""

    def __init__(self, name):
        super().__init__([name])
        self.reached, self.go = threading.Event(), threading.Event()
        self.lengths = []  # positions or patches of each forward pass

    def see(self, x, at):
        self.lengths.append(x.shape[0])
        self.reached.set()
        assert self.go.wait(PATIENCE)
        return x


@contextmanager
def holding(server, name="blk.0.out"):
    hold = Hold(name)
    with server.models.current.model.probed(hold):
        try:
            yield hold
        finally:
            hold.go.set()


def send_request(server, body):
    """Send a chat request without waiting for its answer."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return connection


def idle(server):
    return not server.worker.busy and not server.worker.waiting


def metric(server, name):
    page = httpx2.get(f"{server.url}/metrics", timeout=PATIENCE).text
    return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stage", ["vision.blk.0.layer_out", "blk.0.out"])
def test_a_disconnect_in_prefill_stops_the_forward_pass(server, stage, stream):
    body = {"messages": [{"role": "user", "content": SEE}], "stream": stream}
    with holding(server, stage) as hold:
        connection = send_request(server, body)
        assert hold.reached.wait(PATIENCE)
        (job,) = server.worker._running
        connection.close()
        server.until(job.cancelled.is_set)
        hold.go.set()
        server.until(lambda: idle(server))
        assert len(hold.lengths) == 1, "the forward pass ended before it reached this stage again"
    assert server.chat(SEE).json()["choices"][0]["message"]["content"] == "3", "the next one is answered"


def test_a_disconnect_in_mid_stream_stops_the_answer(server):
    cancelled = metric(server, "llava_ref_cancelled_total")
    connection = send_request(server, LONG | {"stream": True})
    answer = connection.getresponse()
    while b'"content":"' not in (line := answer.readline()) or b'"role"' in line:
        pass
    answer.close()
    connection.close()
    server.until(lambda: idle(server))
    server.until(lambda: metric(server, "llava_ref_cancelled_total") == cancelled + 1)


def test_a_disconnect_while_waiting_leaves_the_queue(server):
    with holding(server) as hold:
        first = send_request(server, LONG | {"max_tokens": 2})
        assert hold.reached.wait(PATIENCE)
        second = send_request(server, LONG)
        server.until(lambda: server.worker.waiting == 1)
        second.close()
        server.until(lambda: server.worker.waiting == 0)
        hold.go.set()
        assert json.loads(first.getresponse().read())["usage"]["completion_tokens"] == 2
        first.close()


def test_a_full_queue_says_when_to_retry():
    with serving(limits=Limits(max_queue=1)) as server, holding(server) as hold:
        two = [send_request(server, {"messages": HI}) for _ in range(2)]
        assert hold.reached.wait(PATIENCE)
        server.until(lambda: server.worker.waiting == 1)
        answer = server.chat("Hi")
        assert server.error(answer) == (429, None, "server_busy")
        assert server.api._body_bytes.taken == 0, "a refused request holds nothing"
        assert answer.headers["retry-after"] == "2" and answer.headers["x-should-retry"] == "true"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert server.client.get("/health").status_code == 200
        assert server.worker.waiting == 1, "it did not wait for the model"
        hold.go.set()
        assert [connection.getresponse().status for connection in two] == [200, 200]
        for connection in two:
            connection.close()
        assert server.chat("Hi", max_tokens=1).status_code == 200


def test_first_come_first_served(server):
    with holding(server) as hold:
        waiting = []
        for i in range(5):
            words = [{"role": "user", "content": "Hi " * (3 * i % 5 + 1)}]  # of unsorted lengths
            waiting.append(send_request(server, {"messages": words, "max_tokens": 1}))
            server.until(lambda i=i: hold.reached.is_set() and server.worker.waiting == i)
        hold.go.set()
        lengths = [json.loads(connection.getresponse().read())["usage"]["prompt_tokens"] for connection in waiting]
        for connection in waiting:
            connection.close()
    assert hold.lengths == lengths and len(set(lengths)) == 5


def test_comments_keep_a_silent_stream_open():
    with serving(limits=Limits(ping_seconds=0.05)) as server, holding(server) as hold:
        connection = send_request(server, {"messages": HI, "stream": True, "max_tokens": 1})
        answer = connection.getresponse()
        assert answer.status == 200, "the headers come before the answer"
        lines = [answer.readline() for _ in range(8)]
        assert lines.count(b": keep-alive\n") >= 2
        hold.go.set()
        assert answer.read().endswith(b"data: [DONE]\n\n")
        connection.close()


def test_an_error_affects_only_its_request(server, caplog):
    class Broken(Probe):
        def see(self, x, at):
            raise RuntimeError("secret /path")

    with server.models.current.model.probed(Broken(["blk.0.out"])):
        answer = server.chat("Hi")
        assert server.error(answer) == (500, None, "internal_error") and "secret" not in answer.text
    assert "secret" in caplog.text, "the log has it"
    assert server.chat("Hi", max_tokens=1).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_is_reported_and_unblocks_requests():
    class Fatal(Probe):
        def see(self, x, at):
            raise SystemExit

    with serving() as server:
        with server.models.current.model.probed(Fatal(["blk.0.out"])):
            assert server.error(server.chat("Hi")) == (503, None, "worker_dead")
        assert server.error(server.client.get("/health")) == (503, None, "worker_dead")
        assert server.error(server.chat("Hi")) == (503, None, "worker_dead")


def raw(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def ended(sock):
    """Return whether the other side closes the connection in time."""
    sock.settimeout(PATIENCE)
    try:
        while sock.recv(65536):
            pass
        return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_slow_clients_time_out():
    with serving(limits=Limits(read_seconds=1.0, write_seconds=0.3)) as server:
        with raw(server) as silent, raw(server) as header, raw(server) as body:
            header.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-")
            body.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            answer = b"".join(iter(lambda: body.recv(65536), b""))  # until the connection is closed
            assert answer.startswith(b"HTTP/1.1 408") and b'"timeout"' in answer
            assert ended(header) and ended(silent)
        with raw(server) as later:
            later.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert later.recv(65536).startswith(b"HTTP/1.1 200")
            later.sendall(b"GET /hea")
            assert ended(later), "the second header has its own timeout"
        assert server.client.get("/health").status_code == 200


def test_a_client_that_stops_reading_times_out():
    """The answer is 9 MB of token ids, more than the socket buffers hold."""
    with serving(limits=Limits(write_seconds=0.3)) as server, raw(server) as sock:
        body = json.dumps({"content": "a " * 350_000, "with_pieces": True}).encode()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.until(lambda: any(connection.flow.write_paused for connection in server.connections))
        server.until(lambda: not server.connections)


def test_an_allowance():
    allowance = Allowance(10, "words")
    with allowance.share(6):
        with pytest.raises(ApiError, match="busy: words") as caught:
            allowance.take(5)
        assert caught.value.status == 429 and allowance.taken == 6
    allowance.take(10)
    allowance.give_back(10)
    assert allowance.taken == 0


def test_a_refused_request_gives_its_pixels_back(server):
    for path, asked in (("/v1/chat/completions", []), ("/v1/look", [{"role": "assistant", "content": "3"}])):
        messages = [{"role": "user", "content": [*SEE, {"type": "text", "text": "the " * 3000}]}, *asked]
        assert server.error(server.post(path, {"messages": messages}))[2] == "context_length_exceeded"
        assert server.api._pixels.taken == 0


def test_nothing_leaks(server):
    """Check descriptors, threads and shared allowances after answers of all kinds."""
    for _ in range(2):
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(5):
            server.chat(SEE)
            server.chat("x", frobnicate=1)
            connection = send_request(server, LONG | {"stream": True})
            connection.getresponse().readline()
            connection.close()
        server.until(lambda: idle(server))
    server.until(
        lambda: server.api._pixels.taken == server.api._body_bytes.taken == server.api._queue_places.taken == 0
    )
    after = len(os.listdir("/proc/self/fd")), threading.active_count()
    assert after[0] <= before[0] + 2 and after[1] <= before[1] + 2


@pytest.mark.parametrize("size, returned", [((2001, 1001), 1), ((200, 100), 0)])
def test_a_large_pictures_memory_is_freed_after_its_answer(monkeypatch, size, returned):
    given: list[int] = []
    with serving() as server:
        monkeypatch.setattr("llava_ref.memory.give_back", lambda: given.append(1))
        out = io.BytesIO()
        Image.new("RGB", size).save(out, "PNG")
        content = [{"type": "image_url", "image_url": {"url": data_uri(out.getvalue())}}, *SEE[1:]]
        assert server.chat(content, max_tokens=1).status_code == 200
        if returned:
            server.until(lambda: given)
        assert len(given) == returned
        monkeypatch.undo()
