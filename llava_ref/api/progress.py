"""Tells a client that asks with `return_progress` what its request waits for, in llama-server's `prompt_progress`.

The model's thread writes the state, and the event loop reads it while the stream has nothing else to send. So there is
no queue of old news, and an answer is not slowed by a client that reads slowly.
"""

import time
from collections.abc import Mapping
from typing import Any

from ..generation.answer import Stream
from ..tracing.progress import Blocks, PictureProgress, Progress, PromptProgress


class RequestProgress:
    """How far one request is.

    `chunk`: the chunk of its stream, without text, that the field is added to; `stream`: its first answer."""

    def __init__(self, blocks: Blocks, stream: Stream, chunk: Mapping[str, Any]) -> None:
        self.probe = Progress(blocks, self._report)
        """Attached while the model works for this request."""
        self._stream, self._chunk = stream, chunk
        self._total, self._pictures = len(stream.request.token_ids), len(stream.request.images)
        self._began: float | None = None
        self._cached: int | None = None
        self._state: dict[str, Any] = {"stage": "prompt", "processed": 0}

    @property
    def ended(self) -> bool:
        """Return whether the answer has begun, so that its own chunks say how far it is."""
        return self._stream.n_tokens > 0

    def news(self, ahead: int) -> dict[str, Any]:
        """Return the next chunk. `ahead`: requests that run or wait before this one, 0 if it runs."""
        now, state = time.monotonic(), self._state
        if ahead:
            state = {"stage": "queue", "ahead": ahead, "processed": 0}
        figures = {"total": self._total, "cache": self._cached or 0, "time_ms": 0}
        if self._began is not None:
            figures["time_ms"] = round((now - self._began) * 1000)
        return {**self._chunk, "prompt_progress": figures | state}

    def _report(self, at: PictureProgress | PromptProgress) -> None:
        """Note a state, in the model's thread. Pictures whose rows were kept count as read."""
        self._began = self._began or time.monotonic()
        if isinstance(at, PictureProgress):
            kept = len(self._stream.clock.cached_rows)
            number = min(at.picture + 1 + kept, self._pictures)
            place = {"picture": number, "pictures": self._pictures, "block": at.done, "blocks": at.total}
            self._state = {"stage": "picture", **place, "processed": 0}
        elif at.positions.stop <= self._total:
            self._cached = at.positions.start if self._cached is None else self._cached
            self._state = {"stage": "prompt", "layer": at.done, "layers": at.total, "processed": at.position}
