"""Records answers for clients that ask for it, in the folder that the operator names, for `llava-ref replay`."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..chat.templates import ChatTemplate
from ..generation.answer import Stream
from ..generation.request import Reply, Request
from ..generation.sampling import Sampling
from ..model import Llava
from ..records.record import HashedFile, hashed_files
from ..records.recording import Recording
from ..records.request import RecordedRequest
from ..tracing.tracefile import whole_file
from .errors import ApiError

MAX_RECORDS = 2**30  # bytes of the folder; when it is full, no answer is recorded
log = logging.getLogger("llava_ref.server")


@dataclass(frozen=True, slots=True)
class AskedRecord:
    """What was asked, as a record has it, and the id of the response, which names the file."""

    asked: RecordedRequest
    id: str


class AnswerRecorder:
    """Begins the answers of one loaded model. `folder`: None where no client may have one recorded."""

    def __init__(self, model: Llava, prompts: ChatTemplate | None, folder: Path | None) -> None:
        self._model, self._prompts, self._folder = model, prompts, folder
        self._hashing = threading.Lock()
        self._files: dict[str, list[HashedFile]] | None = None  # from the first record on

    def kept(self, wanted: bool | None, response: str, asked: Callable[[], RecordedRequest]) -> AskedRecord | None:
        """Return what is to be recorded, None if that is not wanted. `response`: its id. Raises ApiError 403."""
        if not wanted:
            return None
        if self._folder is None:
            raise _refused("not allowed: the server was started without --record-dir")
        if sum(entry.stat().st_size for entry in os.scandir(self._folder)) >= MAX_RECORDS:
            raise _refused(f"the server's folder of records is full, {MAX_RECORDS:,} bytes")
        with self._hashing:
            self._files = self._files or hashed_files(self._model)
        return AskedRecord(asked(), response)

    def answer(
        self,
        request: Request,
        sampling: Sampling,
        *,
        max_tokens: int | None,
        stop: Sequence[str],
        kept: AskedRecord | None = None,
        index: int = 0,
    ) -> Stream:
        """Begin an answer as `Llava.answer` does; with `kept` it is recorded. `index`: its number in the response."""
        sampling = sampling.seeded() if kept else sampling
        stream = self._model.answer(request, sampling, max_tokens=max_tokens, stop=stop)
        if kept is None:
            return stream
        recording = Recording(self._model, kept.asked, sampling, max_tokens, stop, self._prompts)

        def keep(reply: Reply) -> None:
            assert self._folder is not None and self._files is not None
            self._write(self._folder / f"{kept.id}-{index}.json", recording.record(self._files, request, reply).text())

        return recording.of(stream, keep)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        try:
            with whole_file(path) as file:
                file.write(data)
        except OSError as error:
            log.warning(f"warning: {path}: a record could not be written: {error.strerror}")
            raise ApiError(500, "record: could not be written", param="record", code="record_failed") from None


def _refused(problem: str) -> ApiError:
    return ApiError(403, f"record: {problem}", param="record", code="record_not_allowed")
