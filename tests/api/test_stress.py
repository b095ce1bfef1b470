"""Clients that go, wait, crowd or dawdle; a worker that fails; the end of the server."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import httpx2
from PIL import Image

from llava_ref.api.errors import ApiError
from llava_ref.api.limits import Allowance, Limits
from llava_ref.tracing.trace import Probe

from .running import Process, data_uri, picture, serving

HI = [{"role": "user", "content": "Hi"}]
LONG = {"messages": HI, "logit_bias": {"2": -100}}  # until the context ends
SEE = [
    {"type": "image_url", "image_url": {"url": data_uri(picture("count.png"))}},
    {"type": "text", "text": "Count the stars."},
]


class Hold(Probe):
    """Stops the forward pass at every array of a name until it is let go."""

    def __init__(self, name):
        super().__init__([name])
        self.reached, self.go = threading.Event(), threading.Event()
        self.lengths = []  # positions, or patches, of each pass seen

    def see(self, x, at):
        self.lengths.append(x.shape[0])
        self.reached.set()
        assert self.go.wait(20)
        return x


@contextmanager
def held(server, name="blk.0.out"):
    hold = Hold(name)
    with server.models.current.model.probed(hold):
        try:
            yield hold
        finally:
            hold.go.set()


def begin(server, body):
    """A request sent, its answer not waited for."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return connection


def idle(server):
    return not server.worker.busy and not server.worker.waiting


def metric(server, name):
    page = server.client.get("/metrics").text
    return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stage", ["vision.blk.0.layer_out", "blk.0.out"])
def test_a_client_gone_in_prefill_ends_the_pass(server, stage, stream):
    body = {"messages": [{"role": "user", "content": SEE}], "stream": stream}
    with held(server, stage) as hold:
        connection = begin(server, body)
        assert hold.reached.wait(10)
        (job,) = [server.worker._running]
        connection.close()
        server.until(job.cancelled.is_set)
        hold.go.set()
        server.until(lambda: idle(server))
        assert len(hold.lengths) == 1, "the pass ended before it came to this stage again"
    assert server.chat(SEE).json()["choices"][0]["message"]["content"] == "3", "the next one is answered"


def test_a_client_gone_in_mid_stream_ends_the_answer(server):
    cancelled = metric(server, "llava_ref_cancelled_total")
    connection = begin(server, LONG | {"stream": True})
    answer = connection.getresponse()
    while b'"content":"' not in (line := answer.readline()) or b'"role"' in line:
        pass
    answer.close()
    connection.close()
    server.until(lambda: idle(server))
    server.until(lambda: metric(server, "llava_ref_cancelled_total") == cancelled + 1)


def test_a_client_gone_while_it_waits_leaves_the_queue(server):
    with held(server) as hold:
        first = begin(server, LONG | {"max_tokens": 2})
        assert hold.reached.wait(10)
        second = begin(server, LONG)
        server.until(lambda: server.worker.waiting == 1)
        second.close()
        server.until(lambda: server.worker.waiting == 0)
        hold.go.set()
        assert json.loads(first.getresponse().read())["usage"]["completion_tokens"] == 2
        first.close()


def test_a_full_queue_says_when_to_come_back():
    with serving(limits=Limits(max_queue=1)) as server, held(server) as hold:
        two = [begin(server, {"messages": HI}) for _ in range(2)]
        assert hold.reached.wait(10)
        server.until(lambda: server.worker.waiting == 1)
        answer = server.chat("Hi")
        assert server.error(answer) == (429, None, "server_busy")
        assert server.api._body_bytes.taken == 0, "what was refused holds nothing"
        assert answer.headers["retry-after"] == "2" and answer.headers["x-should-retry"] == "true"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        began = time.monotonic()
        assert server.client.get("/health").status_code == 200 and time.monotonic() - began < 2
        hold.go.set()
        assert [connection.getresponse().status for connection in two] == [200, 200]
        for connection in two:
            connection.close()
        assert server.chat("Hi", max_tokens=1).status_code == 200


def test_first_come_first_served(server):
    with held(server) as hold:
        waiting = []
        for i in range(5):
            words = [{"role": "user", "content": "Hi " * (3 * i % 5 + 1)}]  # of lengths that are in no order
            waiting.append(begin(server, {"messages": words, "max_tokens": 1}))
            server.until(lambda i=i: hold.reached.is_set() and server.worker.waiting == i)
        hold.go.set()
        lengths = [json.loads(connection.getresponse().read())["usage"]["prompt_tokens"] for connection in waiting]
        for connection in waiting:
            connection.close()
    assert hold.lengths == lengths and len(set(lengths)) == 5


def test_comments_keep_a_silent_stream_open():
    with serving(limits=Limits(ping_seconds=0.05)) as server, held(server) as hold:
        connection = begin(server, {"messages": HI, "stream": True, "max_tokens": 1})
        answer = connection.getresponse()
        assert answer.status == 200, "the headers come before the answer"
        lines = [answer.readline() for _ in range(8)]
        assert lines.count(b": keep-alive\n") >= 2
        hold.go.set()
        assert answer.read().endswith(b"data: [DONE]\n\n")
        connection.close()


def test_an_error_inside_a_request_stays_there(server, caplog):
    class Broken(Probe):
        def see(self, x, at):
            raise RuntimeError("secret /path")

    with server.models.current.model.probed(Broken(["blk.0.out"])):
        answer = server.chat("Hi")
        assert server.error(answer) == (500, None, "internal_error") and "secret" not in answer.text
    assert "secret" in caplog.text, "the log has it"
    assert server.chat("Hi", max_tokens=1).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_is_told_and_nobody_waits_for_it():
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
    return socket.create_connection((host, int(port)), 10)


def ended(sock, seconds=5.0):
    """Whether the other side ends the connection in time."""
    sock.settimeout(seconds)
    try:
        while sock.recv(65536):
            pass
        return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_slow_clients_time_out():
    with serving(limits=Limits(read_seconds=0.3, write_seconds=0.3)) as server:
        with raw(server) as silent, raw(server) as header, raw(server) as body:
            header.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-")
            body.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            answer = b"".join(iter(lambda: body.recv(65536), b""))  # to the connection's end
            assert answer.startswith(b"HTTP/1.1 408") and b'"timeout"' in answer
            assert ended(header) and ended(silent)
        with raw(server) as later:
            later.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert later.recv(65536).startswith(b"HTTP/1.1 200")
            later.sendall(b"GET /hea")
            assert ended(later), "the second header has a time of its own"
        assert server.client.get("/health").status_code == 200


def test_a_client_that_takes_nothing_is_given_up():
    """9 MB of token ids, of which the sockets between hold only a part."""
    with serving(limits=Limits(write_seconds=0.3)) as server, raw(server) as sock:
        body = json.dumps({"content": "a " * 350_000, "with_pieces": True}).encode()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.until(lambda: any(connection.flow.write_paused for connection in server.connections), 20)
        server.until(lambda: not server.connections)


def test_a_budget():
    allowance = Allowance(10, "words")
    with allowance.share(6):
        with pytest.raises(ApiError, match="busy: words") as caught:
            allowance.take(5)
        assert caught.value.status == 429 and allowance.taken == 6
    allowance.take(10)
    allowance.give_back(10)
    assert allowance.taken == 0


def test_a_refused_request_gives_its_pictures_back(server):
    for path, asked in (("/v1/chat/completions", []), ("/v1/look", [{"role": "assistant", "content": "3"}])):
        messages = [{"role": "user", "content": [*SEE, {"type": "text", "text": "the " * 3000}]}, *asked]
        assert server.error(server.post(path, {"messages": messages}))[2] == "context_length_exceeded"
        assert server.api._pixels.taken == 0


def test_nothing_is_left_behind(server):
    """Descriptors, threads and what requests share, after answers of all kinds."""
    for _ in range(2):
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(5):
            server.chat(SEE)
            server.chat("x", frobnicate=1)
            connection = begin(server, LONG | {"stream": True})
            connection.getresponse().readline()
            connection.close()
        server.until(lambda: idle(server))
    server.until(
        lambda: server.api._pixels.taken == server.api._body_bytes.taken == server.api._queue_places.taken == 0
    )
    after = len(os.listdir("/proc/self/fd")), threading.active_count()
    assert after[0] <= before[0] + 2 and after[1] <= before[1] + 2


def first_piece(server):
    connection = begin(server, LONG | {"stream": True, "max_tokens": 400})
    answer = connection.getresponse()
    while b'"content":"' not in (line := answer.readline()) or b'"role"' in line:
        pass
    return connection, answer


def test_sigterm_in_mid_stream_lets_the_answer_end():
    with Process() as server:
        connection, answer = first_piece(server)
        server.process.send_signal(signal.SIGTERM)
        rest = answer.read()
        assert rest.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"length"' in rest
        connection.close()
        assert server.process.wait(15) == 0
    assert "Traceback" not in "".join(server.log)


def test_no_grace_cuts_the_answer_with_an_error():
    with Process("--grace-seconds", "0") as server:
        connection, answer = first_piece(server)
        waiting = begin(server, LONG)
        time.sleep(0.05)
        server.process.send_signal(signal.SIGINT)
        last = [line for line in answer.read().split(b"\n\n") if line][-1]
        assert b'"shutting_down"' in last
        assert waiting.getresponse().status == 503
        connection.close()
        waiting.close()
        assert server.process.wait(15) == 130


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_log_on_a_full_disk_stops_nothing():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llava_ref", "serve", "-t", "1", "--port", str(port)]
    with open("/dev/full", "w") as full, subprocess.Popen(command, stdout=full, stderr=full) as process:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until and process.poll() is None:
                with suppress(httpx2.ConnectError):
                    health = httpx2.get(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                time.sleep(0.1)
            answer = httpx2.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={"messages": HI, "max_tokens": 1})
            assert health.status_code == answer.status_code == 200
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("size, returned", [((2001, 1001), 1), ((200, 100), 0)])
def test_a_large_picture_s_memory_goes_back_after_its_answer(monkeypatch, size, returned):
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
