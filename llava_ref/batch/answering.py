"""Answer the lines of a batch by the server's own functions, without HTTP.

An answer depends on nothing but its line, the model and the settings, so that whoever computes it, and when, gives the
same bytes: ids are hashes, times are 0, and what a cache has saved is not counted.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from ..api import prepare
from ..api.errors import ApiError, from_library, internal
from ..api.limits import Allowance, Limits
from ..api.models import LoadedModel
from ..api.prepare import Prepared
from ..api.respond import as_json
from ..api.responses import prepare_response
from ..api.worker import Items
from ..chat.messages import Fetch
from ..errors import LlavaError
from ..generation.answer import Turn
from ..generation.together import in_turn
from .lines import LineError, Task

CHAT, COMPLETION, RESPONSE = URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
AHEAD = 2
"""Requests whose pictures are fetched and decoded while the model answers those before."""
log = logging.getLogger("llava_ref.batch")


@dataclass(slots=True, eq=False)
class AskedLine:
    """A request that the model is at."""

    task: Task
    items: Items
    at_prompt: bool = False


class Answerer:
    """Answers requests with one model: as many at once as can share its steps.

    `fetch` gets pictures at URLs. `strict`: a parameter that has no effect is refused."""

    def __init__(self, loaded: LoadedModel, limits: Limits, fetch: Fetch | None, strict: bool) -> None:
        self._loaded, self._limits, self._fetch, self._strict = loaded, limits, fetch, strict
        settings = loaded.model.settings
        if (settings["device"], settings["precision"]) == ("cuda", "fast"):
            loaded.model.reuse = None  # there it changes the rounding, and so would the lines before

    @property
    def together(self) -> int:
        """Return how many requests share steps."""
        return self._loaded.model.together

    def each(self, take: Callable[[], Task | None]) -> Iterator[tuple[Task, bytes]]:
        """Yield tasks with the lines that answer them, as they are done.

        `take` gives the next task, None if there is none for now; the end is when there is none and all are done."""
        waiting, running = deque[tuple[Task, Future[Prepared]]](), list[AskedLine]()
        threads = ThreadPoolExecutor(AHEAD, "prepare")
        try:
            while True:
                while len(waiting) < AHEAD and (task := take()) is not None:
                    if task.error is None:
                        waiting.append((task, threads.submit(self._prepared, task)))
                    else:
                        yield task, failed(task, task.error)
                if not (waiting or running):
                    return
                while waiting and len(running) < self.together and (not running or waiting[0][1].done()):
                    task, future = waiting.popleft()
                    try:
                        running.append(AskedLine(task, future.result().work()))
                    except ApiError as error:
                        yield task, failed(task, error)
                for asked in in_turn(running):
                    if (answer := _turn(asked)) is not None:
                        running.remove(asked)
                        yield asked.task, answer
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _prepared(self, task: Task) -> Prepared:
        """Make all checks of a request. Raises ApiError."""
        body, loaded, limits = bytearray(task.body), self._loaded, self._limits
        try:
            if task.url == COMPLETION:
                return prepare.completion(body, loaded, self._strict)
            function = prepare.chat if task.url == CHAT else prepare_response
            return function(body, loaded, limits, Allowance(limits.max_pixels, ""), self._fetch, self._strict)
        except ApiError:
            raise
        except Exception:
            log.exception(f"line {task.number} failed")
            raise internal() from None


def _turn(asked: AskedLine) -> bytes | None:
    """Run a request to its next token or for a stretch of its prompt; return its line once it is answered."""
    try:
        item = next(asked.items)
    except ApiError as error:
        return failed(asked.task, error)
    except LlavaError as error:
        return failed(asked.task, from_library(error, None, None))
    except Exception:
        log.exception(f"line {asked.task.number} failed")
        return failed(asked.task, internal())
    asked.at_prompt = item is Turn.PROMPT
    return None if isinstance(item, Turn) else _line(asked.task, 200, _repeatable(item, asked.task.id))


def failed(task: Task, error: LineError | ApiError) -> bytes:
    """Return the line of a task that has no answer: an error of the request is a response, as the server gives it."""
    if isinstance(error, ApiError):
        return _line(task, error.status, error.body())
    return _json_line(task, None, asdict(error))


def _line(task: Task, status: int, body: dict[str, Any]) -> bytes:
    return _json_line(task, {"status_code": status, "request_id": f"req_{task.id}", "body": body}, None)


def _json_line(task: Task, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    fields = {"id": f"batch_req_{task.id}", "custom_id": task.custom_id, "response": response, "error": error}
    return as_json(fields) + b"\n"


def _repeatable(body: dict[str, Any], identity: str) -> dict[str, Any]:
    """Return an answer without what depends on when and where it was given."""
    body = {key: value for key, value in body.items() if key != "timings"}
    body["id"] = _fixed(body["id"], identity)
    messages = [choice["message"] for choice in body.get("choices", ()) if "message" in choice]
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    for i, item in enumerate([*calls, *body.get("output", ())]):
        for key in {"id", "call_id"} & item.keys():
            item[key] = _fixed(item[key], hashlib.sha256(f"{identity} {key} {i}".encode()).hexdigest())
    for key in ("created", "created_at", "completed_at"):
        body |= {key: 0} if body.get(key) else {}
    usage = body["usage"]
    (usage.get("prompt_tokens_details") or usage["input_tokens_details"])["cached_tokens"] = 0
    return body


def _fixed(name: str, number: str) -> str:
    """Return an id with another number behind its prefix, in the place of a random one."""
    prefix = name[: name.rfind("_" if "_" in name else "-") + 1]
    return prefix + number[: len(name) - len(prefix)]
