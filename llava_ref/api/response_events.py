"""Builds the events of OpenAI's Responses API from an answer; the last one holds the whole response object."""

import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from ..generation.answer import Stream, Turn
from ..generation.calling import CallArguments, CallBegun, CallReader, Said
from ..generation.request import Reply
from ..tokenizer.tokenizer import Tokenizer
from .errors import ApiError
from .handler import said_pieces
from .respond import EventForm, as_json


class AnswerEvents:
    """One answer. `head`: the fields of the response that are known before it."""

    def __init__(
        self,
        head: Mapping[str, Any],
        stream: Stream,
        tokenizer: Tokenizer,
        reader: CallReader,
        warnings: tuple[str, ...],
    ) -> None:
        self._head, self._stream, self._tokenizer, self._warnings = head, stream, tokenizer, warnings
        self._reader = reader
        self._items: list[dict[str, Any]] = []  # of the response's output; the last one may not be complete
        self._text: str | None = None  # of the message that is the last item, while more may come

    def events(self) -> Iterator[dict[str, Any] | Turn]:
        """Yield the events in OpenAI's order, without their numbers, and turns in between."""
        yield {"type": "response.created", "response": self._head}
        yield {"type": "response.in_progress", "response": self._head}
        for piece in said_pieces(self._stream, self._tokenizer, self._reader):
            if isinstance(piece, Turn):
                yield piece
            else:
                yield from self._said(piece[0])
        if not self._items:
            yield from self._begin_message()
        reply = self._stream.reply
        status = "incomplete" if reply.finish_reason == "length" else "completed"
        cut = bool(self._reader.calls) and not self._reader.called
        yield from self._finish("incomplete" if cut else status)
        yield {"type": f"response.{status}", "response": self._response(status, reply)}

    def _said(self, said: Said) -> Iterator[dict[str, Any]]:
        if isinstance(said, CallBegun):
            yield from self._finish("completed")
            call = {"type": "function_call", "call_id": said.call.id, "name": said.call.name, "arguments": ""}
            yield from self._begin({"id": "fc_" + uuid.uuid4().hex, **call})
        elif isinstance(said, CallArguments):
            self._items[-1]["arguments"] += said.text
            yield {"type": "response.function_call_arguments.delta", **self._place(), "delta": said.text}
        else:
            if self._text is None:
                yield from self._begin_message()
            self._text = (self._text or "") + said
            yield {
                "type": "response.output_text.delta",
                **self._place(),
                "content_index": 0,
                "delta": said,
                "logprobs": [],
            }

    def _begin(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._items.append(item | {"status": "in_progress"})
        yield {
            "type": "response.output_item.added",
            "output_index": len(self._items) - 1,
            "item": dict(self._items[-1]),
        }

    def _begin_message(self) -> Iterator[dict[str, Any]]:
        self._text = ""
        yield from self._begin({"id": "msg_" + uuid.uuid4().hex, "type": "message", "role": "assistant", "content": []})
        yield {"type": "response.content_part.added", **self._place(), "content_index": 0, "part": _text_part("")}

    def _finish(self, status: str) -> Iterator[dict[str, Any]]:
        """Complete the last item, if there is one."""
        if not self._items:
            return
        item, place = self._items[-1], self._place()
        item["status"] = status
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **place, **done}
        else:
            text, self._text = self._text or "", None
            item["content"] = [_text_part(text)]
            yield {"type": "response.output_text.done", **place, "content_index": 0, "text": text, "logprobs": []}
            yield {"type": "response.content_part.done", **place, "content_index": 0, "part": item["content"][0]}
        yield {"type": "response.output_item.done", "output_index": place["output_index"], "item": item}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

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

    def _response(self, status: str, reply: Reply) -> dict[str, Any]:
        warnings = [*self._warnings, *reply.warnings]
        return {
            **self._head,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": self._items,
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
