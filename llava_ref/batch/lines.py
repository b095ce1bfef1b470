"""Read a file of requests in OpenAI's batch format: JSON objects, one a line.

A line is `{"custom_id": ..., "method": "POST", "url": ..., "body": {...}}`. One that is not is a task too, with the
error that its answer will be. Lines and errors are those of https://platform.openai.com/docs/guides/batch and of
openai-python 3.57, `types/batch_error.py`.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..api.body import parse_json
from ..api.errors import ApiError, refuse
from ..api.limits import Limits
from ..api.respond import as_json
from ..errors import ImageError, ParameterError, PromptError
from . import CASES
from .pictures import Folders, inlined

MAX_LINES = 1_000_000
MAX_ID = 512
"""Characters of a `custom_id`."""
AROUND = 1 << 16
"""Bytes of a line besides its body, at most."""
FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class LineError:
    """Says why a line is no request, as OpenAI's `BatchError` does."""

    code: str
    message: str
    param: str | None
    line: int

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Task:
    """One line, ready to be answered on any machine."""

    number: int
    """Of the line in its file, from 1."""
    id: str
    """32 hexadecimal digits: a hash of the line, its number, the pictures that it names by path, and `Lines.key`."""
    custom_id: str | None
    url: str
    body: bytes
    """JSON, with pictures that it names by path as data URIs."""
    error: LineError | ApiError | None = None
    """Why it is not to be answered: it is no request, or names a picture that cannot be had."""


class LineProblem(Exception):
    """Raised for a line that is no request."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


class Lines:
    """The tasks of a file, in its order, as often as they are asked for.

    `path`: the file, or a folder with it and pictures. `key`: a hash of all else that answers depend on. `urls`: those
    that are answered. `allowed`: folders of pictures. Raises ParameterError and OSError."""

    def __init__(
        self, path: Path, key: str, limits: Limits, urls: Collection[str], allowed: tuple[Path, ...] = ()
    ) -> None:
        self.path = path / CASES if path.is_dir() else path
        self._key, self._limits, self._urls = key, limits, urls
        self._folders = Folders(self.path.parent, (*allowed, path) if path.is_dir() else allowed)
        self.total = sum(1 for _ in self._raw())
        if not 1 <= self.total <= MAX_LINES:
            raise ParameterError(str(self.path), "lines", f"{self.total:,} requests, expected 1 to {MAX_LINES:,}")

    def _raw(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield number and text of each line that is not blank; None in the place of a text that is too long."""
        most = self._limits.max_body + AROUND
        with open(self.path, "rb") as file:
            number, line = 0, file.readline(most)
            while line:
                number, text = number + 1, line.strip()
                kept: bytes | None = text
                while not line.endswith(b"\n") and (line := file.readline(most)):
                    kept = None
                if kept or kept is None:
                    yield number, kept
                line = file.readline(most)

    def __iter__(self) -> Iterator[Task]:
        seen: dict[str, int] = {}
        for number, text in self._raw():
            yield self._task(number, text, seen)

    def _task(self, number: int, text: bytes | None, seen: dict[str, int]) -> Task:
        """Make the task of a line. `seen`: the ids before it, and their lines."""
        digest = hashlib.sha256(f"{self._key} {number} ".encode() + (text or b""))
        line: dict[str, Any] = {}
        body = b""
        error: LineError | ApiError | None = None
        try:
            line = _object(text, self._limits)
            _check(line, self._urls, seen, number)
            for data in inlined(line["body"], self._folders, self._limits):
                digest.update(hashlib.sha256(data).digest())
            body = _repeatable(line["body"], digest.hexdigest())
        except LineProblem as problem:
            error = LineError(problem.code, f"line {number}: {problem}", problem.param, number)
        except (ImageError, PromptError) as refused:
            error = ApiError(400, str(refused), param=refused.where, code=refused.code)
        except ApiError as refused:
            error = refused
        name = line.get("custom_id")
        return Task(
            number, digest.hexdigest()[:32], name if _is_name(name) else None, str(line.get("url")), body, error
        )


def _object(text: bytes | None, limits: Limits) -> dict[str, Any]:
    """Parse a line. Raises LineProblem."""
    if text is None:
        raise LineProblem("request_too_large", f"over {limits.max_body:,} bytes")
    try:
        line = parse_json(text, "line")
    except ApiError as error:
        raise LineProblem("invalid_json_line", str(error)) from None
    if not isinstance(line, dict):
        raise LineProblem("invalid_json_line", "expected an object with custom_id, method, url and body")
    return line


def _check(line: dict[str, Any], urls: Collection[str], seen: dict[str, int], number: int) -> None:
    """Check the fields of a line. Raises LineProblem, and ApiError for a body that asks for a stream."""
    for field in FIELDS:
        if field not in line:
            raise LineProblem("missing_required_parameter", f"{field}: missing", field)
    for field in line:
        if field not in FIELDS:
            raise LineProblem("invalid_request", f"{field}: unknown, expected {', '.join(FIELDS)} alone", field)
    name = line["custom_id"]
    if not _is_name(name):
        raise LineProblem("invalid_request", f"custom_id: expected a text of 1 to {MAX_ID} characters", "custom_id")
    if (first := seen.setdefault(name, number)) != number:
        raise LineProblem("duplicate_custom_id", f"custom_id: {name!r} is that of line {first} too", "custom_id")
    if line["method"] != "POST":
        raise LineProblem("invalid_method", f"method: {line['method']!r}, expected 'POST'", "method")
    if line["url"] not in urls:
        raise LineProblem("invalid_url", f"url: {line['url']!r}, expected one of {', '.join(urls)}", "url")
    if not isinstance(line["body"], dict):
        raise LineProblem("invalid_request", "body: expected an object", "body")
    if line["body"].get("stream"):
        raise refuse("stream", "stream: a line of a batch is answered whole, expected false", "unsupported_value")


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 1 <= len(name) <= MAX_ID


def _repeatable(body: dict[str, Any], digest: str) -> bytes:
    """Return a body with a seed, taken from the hash of its line if it has none: the same line, the same answer."""
    if body.get("seed") is None:
        body["seed"] = int(digest[:12], 16)
    return as_json(body)
