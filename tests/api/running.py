"""Starts servers for the tests: on a local socket in a thread of the test's process, or as a process of their own."""

import asyncio
import base64
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx2
import uvicorn

import llava_ref
from llava_ref.api.fetch import Fetcher
from llava_ref.api.limits import Limits
from llava_ref.api.models import Models
from llava_ref.api.protocol import patient_protocol
from llava_ref.api.server import Api, create_app
from llava_ref.api.worker import Worker

from ..support.waiting import PATIENCE, until

PICTURES = llava_ref.embedded()[0].parent / "pictures"


def picture(name: str) -> bytes:
    return (PICTURES / name).read_bytes()


def data_uri(data: bytes, label: str = "image/png") -> str:
    return f"data:{label};base64,{base64.b64encode(data).decode()}"


def load(text, mmproj, n_context):
    return llava_ref.load(text, mmproj, threads=1, n_context=n_context)


class Running:
    """A running server, and an HTTP client for it."""

    def __init__(self, api: Api, models: Models, worker: Worker, url: str, connections: set) -> None:
        self.api, self.models, self.worker, self.url = api, models, worker, url
        self.client = httpx2.Client(base_url=url, timeout=PATIENCE)
        self.connections = connections

    def post(self, path: str, body, **settings) -> httpx2.Response:
        return self.client.post(path, json=body, **settings)

    def chat(self, content, **settings) -> httpx2.Response:
        body = {"model": "any", "messages": [{"role": "user", "content": content}]} | settings
        return self.post("/v1/chat/completions", body)

    def error(self, answer: httpx2.Response) -> tuple[int, str, str]:
        """Check that an answer is an error in OpenAI's form; returns its status, param and code."""
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        assert answer.headers["x-request-id"].startswith("req_")
        return answer.status_code, error["param"], error["code"]

    def until(self, condition) -> None:
        until(condition)


@contextmanager
def serving(
    *,
    limits=None,
    api_key=None,
    origins=(),
    folders=(),
    hosts=(),
    names=(),
    pair=None,
    n_context=None,
    strict=False,
    load=load,
    records=None,
):
    """Run a server with the embedded pair, or `pair`, inside the block.

    `hosts`: allowed for pictures. `names`: host names that it answers to besides the local ones; None allows all."""
    limits = limits or Limits()
    models, worker = Models(load, tuple(folders), limits.max_running, records), Worker()
    models.start(*(pair or llava_ref.embedded()), n_context)
    api = Api(models, worker, limits, Fetcher(tuple(hosts)) if hosts else None, strict=strict)
    app = create_app(api, api_key=api_key, origins=origins, hosts=names)
    config = uvicorn.Config(
        app, http=patient_protocol(limits), ws="none", lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])))
        thread.start()
        running = Running(api, models, worker, url, server.server_state.connections)
        try:
            yield running
        finally:
            running.client.close()
            server.should_exit = True
            worker.drain(0)
            thread.join(PATIENCE)
            worker.join(PATIENCE)
            api.close()


class Process:
    """Runs `llava-ref serve` as a process. `no_files`: every write to a file fails, as on a full disk."""

    def __init__(self, *options, no_files=False, threads="1"):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llava_ref", "serve", "--port", "0", "-t", threads, *options],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads},
            preexec_fn=_no_files if no_files else None,
        )
        self.log = []
        while (line := self.process.stderr.readline()).startswith("warning: "):
            self.log.append(line)
        assert " at http://" in line, line
        self.url = line.split(" at ")[1].strip()
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()


def _no_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def connect(server, buffer: int | None = None) -> socket.socket:
    """Open a connection to a server. `buffer`: size in bytes of the receive buffer of a client that does not read."""
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(PATIENCE)
    sock.connect((host, int(port)))
    return sock


def message(method: str, target: str, body: bytes = b"", *headers: str, version="1.1", length=True) -> bytes:
    """Build a request as bytes. Adds Host and Content-Type unless given, Content-Length unless `length` is False."""
    given = {header.partition(":")[0].lower() for header in headers}
    lines = [f"{method} {target} HTTP/{version}", *headers]
    lines += ["Host: localhost"] if "host" not in given else []
    lines += ["Content-Type: application/json"] if body and "content-type" not in given else []
    lines += [f"Content-Length: {len(body)}"] if body and length else []
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def read_all(sock: socket.socket) -> bytes:
    """Read until the other side closes the connection."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def parse_response(answer: bytes) -> tuple[int, dict]:
    """Return the status and the JSON of a response given as bytes; {} for other bodies."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    return int(head.rpartition(b"HTTP/1.1 ")[2][:3]), json.loads(body) if body.startswith(b"{") else {}


def events(answer) -> list:
    """Return the JSON of each event of a stream, and "[DONE]" as a string."""
    lines = [line for line in answer.iter_lines() if line]
    return [_event(line) for line in lines if not line.startswith(":")]


def _event(line: str):
    assert line.startswith("data: ")
    return line[6:] if line == "data: [DONE]" else json.loads(line[6:])
