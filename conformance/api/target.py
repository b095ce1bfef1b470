"""Ask a server over HTTP, and keep what was sent so that a person can send it again."""

import http.client
import json
import shlex
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from llava_ref.errors import ParameterError

CHAT = "/chat/completions"
SECONDS = 120.0
MOST_SHOWN = 4000
"""Characters of a body that a curl line still holds."""
MOST_READ = 1 << 24


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a server sent back: status, headers by their names in lower case, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body as JSON; None if it is not."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def lines(self) -> list[str]:
        """Return the lines of a stream that are not blank."""
        return [line for line in self.body.decode("utf-8", "replace").splitlines() if line]

    @property
    def chunks(self) -> list[Any]:
        """Return the JSON objects of a stream, the end mark left out."""
        data = [line.removeprefix("data:").strip() for line in self.lines if line.startswith("data:")]
        return [json.loads(text) for text in data if text != "[DONE]"]

    def said(self) -> str:
        """Return what came, as one short line."""
        text = " ".join(self.body.decode("utf-8", "replace").split())
        return f"{self.status} {text[:300]}{'...' if len(text) > 300 else ''}"


@dataclass
class Target:
    """The server under test. `sent`: the requests of the running case, as curl lines."""

    url: str
    model: str
    key: str | None = None
    seconds: float = SECONDS
    patience: float = 5.0
    """Seconds by which an answer may be late."""
    sent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        at = urlsplit(self.url)
        if at.scheme not in ("http", "https") or not at.hostname:
            raise ParameterError(self.url, "URL", "expected one like http://127.0.0.1:8080/v1")
        self._at = at
        self.url = self.url.rstrip("/")

    def connection(self) -> http.client.HTTPConnection:
        host, port = self._at.hostname or "", self._at.port
        if self._at.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=self.seconds, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=self.seconds)

    def headers(self) -> dict[str, str]:
        given = {"Content-Type": "application/json"}
        return given | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def path(self, route: str) -> str:
        return self._at.path.rstrip("/") + route

    def send(self, method: str, route: str, body: bytes | None = None) -> HttpAnswer:
        """Send one request and read all of the answer. Raises OSError and http.client.HTTPException."""
        self.sent.append(self._curl(method, route, body))
        connection = self.connection()
        try:
            connection.request(method, self.path(route), body, self.headers())
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return HttpAnswer(answer.status, headers, answer.read(MOST_READ))
        finally:
            connection.close()

    def post(self, body: Mapping[str, Any], route: str = CHAT) -> HttpAnswer:
        return self.send("POST", route, json.dumps(body).encode())

    def ask(self, content: Any, **settings: Any) -> HttpAnswer:
        """Send one message of the user; at temperature 0, 12 tokens, unless `settings` say otherwise."""
        return self.post(self.request(content, **settings))

    def request(self, content: Any, **settings: Any) -> dict[str, Any]:
        """Return the body of such a request. A setting of `...` is left out."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
        return {key: value for key, value in (body | {"max_tokens": 12} | settings).items() if value is not ...}

    def _curl(self, method: str, route: str, body: bytes | None) -> str:
        words = ["curl", "-sS", "-i", "-X", method, self.url + route]
        if body is not None:
            words += ["-H", "Content-Type: application/json"]
            long = len(body) > MOST_SHOWN
            words += ["-d", f"({len(body):,} bytes, which begin {body[:200]!r})" if long else body.decode("latin-1")]
        if self.key:
            words += ["-H", "Authorization: Bearer KEY"]
        return shlex.join(words)
