"""Tests the end of the server process: signals, the grace period, and a log on a full disk."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import httpx2

from ..support.waiting import PATIENCE, until
from .running import Process
from .test_stress import HI, LONG, metric, send_request


def first_piece(server, **settings):
    """Ask for a long answer and read its beginning."""
    connection = send_request(server, LONG | {"stream": True} | settings)
    answer = connection.getresponse()
    while b'"content":"' not in (line := answer.readline()) or b'"role"' in line:
        pass
    return connection, answer


def test_sigterm_in_mid_stream_lets_the_answer_finish():
    with Process() as server:
        connection, answer = first_piece(server, max_tokens=400)
        server.process.send_signal(signal.SIGTERM)
        rest = answer.read()
        assert rest.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"length"' in rest
        connection.close()
        assert server.process.wait(PATIENCE) == 0
    assert "Traceback" not in "".join(server.log)


def test_without_grace_the_answer_ends_with_an_error():
    with Process("--grace-seconds", "0") as server:
        connection, answer = first_piece(server)
        waiting = send_request(server, LONG)
        until(lambda: metric(server, "llava_ref_queue_length") == 1)
        server.process.send_signal(signal.SIGINT)
        last = [line for line in answer.read().split(b"\n\n") if line][-1]
        assert b'"shutting_down"' in last
        assert waiting.getresponse().status == 503
        connection.close()
        waiting.close()
        assert server.process.wait(PATIENCE) == 130


def listens(port):
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_log_on_a_full_disk_does_not_stop_the_server():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llava_ref", "serve", "-t", "1", "--port", str(port)]
    with open("/dev/full", "w") as full, subprocess.Popen(command, stdout=full, stderr=full) as process:
        try:
            until(lambda: process.poll() is not None or listens(port))
            health = httpx2.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE)
            answer = httpx2.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={"messages": HI, "max_tokens": 1})
            assert health.status_code == answer.status_code == 200
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
