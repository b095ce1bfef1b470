"""Write the answers of a batch in the order of its lines, and go on where a run was interrupted.

A file of answers needs no state beside it: the id of each line is a hash of what the answer was made from. A run that
goes on compares the ids that are there with those that it would give, and cuts off a last line that was half written.
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import ParameterError
from .lines import Task

WINDOW = 1024
"""Tasks that are being answered, or are answered and wait for one before them, at most."""


class InOrder:
    """Gives out tasks, and gives their answers back in the order of the tasks."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._taken: deque[Task] = deque()
        self._answers: dict[int, bytes] = {}

    def take(self) -> Task | None:
        """Return the next task; None if there is none, or too many wait for one that takes long."""
        if len(self._taken) >= WINDOW or (task := next(self._tasks, None)) is None:
            return None
        self._taken.append(task)
        return task

    def put(self, task: Task, answer: bytes) -> Iterator[tuple[Task, bytes]]:
        """Take an answer; yield those that are next."""
        self._answers[task.number] = answer
        while self._taken and self._taken[0].number in self._answers:
            first = self._taken.popleft()
            yield first, self._answers.pop(first.number)


class AnswerFile:
    """The file of answers. One run at a time has it, where the system knows locks of files. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_answered = self.n_failed = 0
        """Lines in the file with the answer to a request, and others."""
        self._file = open(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")

    def __enter__(self) -> "AnswerFile":
        try:
            import fcntl
        except ImportError:  # Windows
            return self
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ParameterError(str(self.path), "file", "another run is writing it") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def left(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Read what is there, and return the tasks that it does not answer.

        Raises ParameterError for a line that this run would not have written; the file is then as it was."""
        tasks, torn, end = iter(tasks), [], 0
        for number, line in enumerate(self._file, 1):
            task = next(tasks, None)
            if task is None:
                raise self._foreign(number, "there are fewer requests")
            if not line.endswith(b"\n"):
                self._check_start(number, line, task)
                torn = [task]
                break
            self._count(self._parsed(number, line, task))
            end += len(line)
        self._file.seek(end)
        if torn:
            self._file.truncate()
        return chain(torn, tasks)

    @property
    def n_lines(self) -> int:
        return self.n_answered + self.n_failed

    def write(self, line: bytes) -> str | None:
        """Add the next line; return why it is no answer, if it is none. Raises OSError."""
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            error.filename = str(self.path)
            raise
        return self._count(json.loads(line))

    def _count(self, line: dict[str, Any]) -> str | None:
        """Count a line; return why it is no answer, if it is none."""
        response = line["response"]
        if response is not None and response["status_code"] == 200:
            self.n_answered += 1
            return None
        self.n_failed += 1
        return str((line["error"] or response["body"]["error"])["message"])

    def _parsed(self, number: int, line: bytes, task: Task) -> dict[str, Any]:
        try:
            value = json.loads(line)
            identity, _ = value["id"], value["response"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._foreign(number, "is no answer of a batch") from None
        if identity != f"batch_req_{task.id}":
            raise self._foreign(number, f"answers something else than line {task.number} of the input as it is now")
        return dict(value)

    def _check_start(self, number: int, line: bytes, task: Task) -> None:
        """Refuse a last line without an end that is not the beginning of this task's."""
        start = f'{{"id":"batch_req_{task.id}"'.encode()
        if not (line.startswith(start) or start.startswith(line)):
            raise self._foreign(number, "is no answer of a batch, or of another one")

    def _foreign(self, number: int, problem: str) -> ParameterError:
        why = "the requests, their pictures, the model or the settings have changed; expected those of the first run"
        return ParameterError(str(self.path), f"line {number}", f"{problem}: {why}, or another file to write")
