"""A proxy in front of a server that breaks one thing, to be found by `apicheck`."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Body = dict[str, Any]


@dataclass(frozen=True)
class Breaking:
    """What is done to a request's JSON, to an answer's status and JSON, and to the chunks of a stream."""

    request: Callable[[Body], Body] = lambda body: body
    status: Callable[[int], int] = lambda status: status
    answer: Callable[[Body], Body] = lambda body: body
    chunks: Callable[[list[str]], list[str]] = lambda lines: lines
    held: int = 0
    """How many times its own time the request behind a long stream takes longer."""


@contextmanager
def broken(url: str, how: Breaking) -> Iterator[str]:
    """Run the proxy inside the block; yields its URL."""
    there, behind = urlsplit(url), [False]

    class Proxy(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            is_long, began = b'"max_tokens": 400' in body, time.monotonic()
            try:
                body = json.dumps(how.request(json.loads(body))).encode()
            except (ValueError, KeyError, TypeError):
                pass  # not a chat: sent on as it is
            connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=60)
            connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data, kind = answer.read(), answer.headers["content-type"]
            connection.close()
            if behind[0] and not is_long:
                time.sleep(how.held * (1.0 + time.monotonic() - began))
            behind[0] = is_long
            if kind.startswith("text/event-stream"):
                lines = [line for line in data.decode().split("\n\n") if line and not line.startswith(":")]
                data = "".join(f"{line}\n\n" for line in how.chunks(lines)).encode()
            else:
                data = json.dumps(how.answer(json.loads(data))).encode()
            self.send_response(how.status(answer.status))
            kept = {
                name: value for name, value in answer.getheaders() if name.lower() in ("cache-control", "x-request-id")
            }
            for name, value in {"content-type": kind, "content-length": str(len(data)), **kept}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # of a client that has left
                self.wfile.write(data)

        do_GET = do_POST = forward

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def each_chunk(change: Callable[[Body, int], Body]) -> Callable[[list[str]], list[str]]:
    """Return a change of every chunk of a stream, which knows the chunk's number."""

    def changed(lines: list[str]) -> list[str]:
        chunks = [line.removeprefix("data: ") for line in lines]
        return ["data: " + (c if c == "[DONE]" else json.dumps(change(json.loads(c), i))) for i, c in enumerate(chunks)]

    return changed


def each_message(change: Callable[[list[Body]], list[Body]]) -> Callable[[Body], Body]:
    """Return a change of the content parts of each message that is a list of them."""

    def changed(body: Body) -> Body:
        for message in body["messages"]:
            if isinstance(message["content"], list):
                message["content"] = change(message["content"])
        return body

    return changed
