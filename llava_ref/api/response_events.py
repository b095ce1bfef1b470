"""Builds the events of OpenAI's Responses API from an answer; the last one holds the whole response object."""

import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from ..generation.answer import Stream, Turn
from ..generation.request import Reply
from ..tokenizer.tokenizer import Tokenizer
from .errors import ApiError
from .handler import answer_pieces
from .respond import EventForm, as_json


class AnswerEvents:
    """One answer. `head`: the fields of the response that are known before it."""

    def __init__(
        self, head: Mapping[str, Any], stream: Stream, tokenizer: Tokenizer, warnings: tuple[str, ...]
    ) -> None:
        self._head, self._stream, self._tokenizer, self._warnings = head, stream, tokenizer, warnings
        self._id = "msg_" + uuid.uuid4().hex

    def events(self) -> Iterator[dict[str, Any] | Turn]:
        """Yield the events in OpenAI's order, without their numbers, and turns in between."""
        yield {"type": "response.created", "response": self._head}
        yield {"type": "response.in_progress", "response": self._head}
        item = {"output_index": 0}
        part = {"item_id": self._id, "output_index": 0, "content_index": 0}
        yield {"type": "response.output_item.added", **item, "item": self._message("in_progress")}
        yield {"type": "response.content_part.added", **part, "part": _text_part("")}
        texts = []
        for piece in answer_pieces(self._stream, self._tokenizer):
            if isinstance(piece, Turn):
                yield piece
                continue
            texts.append(piece[0])
            yield {"type": "response.output_text.delta", **part, "delta": piece[0], "logprobs": []}
        text, reply = "".join(texts), self._stream.reply
        status = "incomplete" if reply.finish_reason == "length" else "completed"
        message = self._message(status, _text_part(text))
        yield {"type": "response.output_text.done", **part, "text": text, "logprobs": []}
        yield {"type": "response.content_part.done", **part, "part": _text_part(text)}
        yield {"type": "response.output_item.done", **item, "item": message}
        yield {"type": f"response.{status}", "response": self._response(status, message, reply)}

    def result(self) -> Generator[dict[str, Any] | Turn, None, None]:
        """Yield turns while the answer is generated, then the response object."""
        last: dict[str, Any] = {}
        for event in self.events():
            yield event if isinstance(event, Turn) else Turn.TOKEN
            last = last if isinstance(event, Turn) else event
        yield last["response"]

    def failed(self, error: ApiError) -> dict[str, Any]:
        """Return the last event of an answer that an error has ended."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"  # the type allows few others
        why = {"code": code, "message": error.body()["error"]["message"]}
        return {"type": "response.failed", "response": {**self._head, "status": "failed", "error": why}}

    def _message(self, status: str, *parts: dict[str, Any]) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "status": status, "content": list(parts)}

    def _response(self, status: str, message: dict[str, Any], reply: Reply) -> dict[str, Any]:
        warnings = [*self._warnings, *reply.warnings]
        return {
            **self._head,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [message],
            "usage": _usage(reply),
            "timings": reply.timings,
            **({"warnings": warnings} if warnings else {}),
        }


class ResponseEvents(EventForm):
    """Names and numbers the events of one response, as they are sent."""

    end = b""

    def __init__(self, answer: AnswerEvents) -> None:
        self._answer, self._number = answer, 0

    def event(self, item: dict[str, Any] | ApiError) -> bytes:
        event = self._answer.failed(item) if isinstance(item, ApiError) else item
        data = as_json({**event, "sequence_number": self._number})
        self._number += 1
        return b"event: " + event["type"].encode("ascii") + b"\ndata: " + data + b"\n\n"


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(reply: Reply) -> dict[str, Any]:
    usage = reply.usage
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cache_write_tokens": 0, **usage["prompt_tokens_details"]},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
