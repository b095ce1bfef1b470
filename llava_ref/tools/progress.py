"""Show on one line of a terminal what is being done; nothing is written where standard error is no terminal."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..generation.answer import Stream
from ..generation.request import Request
from ..model import Llava
from ..tracing.progress import Blocks, PictureProgress, Progress, PromptProgress

INTERVAL = 0.1  # seconds between two updates
ERASE = "\r\x1b[K"  # to the start of the line, and clear it: ECMA-48, 8.3.41


class ProgressLine:
    """The line: written over in place, and erased before anything else is printed.

    A terminal has one cursor, so there is one line, `LINE`."""

    def __init__(self) -> None:
        self._open = self._shown = False
        self._began = self._last = 0.0
        self._task = ""
        self._pictures, self._positions = 0, 0

    @contextmanager
    def open(self, *models: Llava, request: Request | None = None) -> Iterator[None]:
        """Show progress inside the block, of these models by itself. `request`: what is asked, for the totals."""
        self._open = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._began, self._last, self._task = time.monotonic(), 0.0, ""
        self._pictures = 0 if request is None else len(request.images)
        self._positions = 0 if request is None else len(request.token_ids)
        with ExitStack() as watched:
            for model in models if self._open else ():
                watched.enter_context(model.probes.attached(self._probe(model)))
            try:
                yield
            finally:
                self.erase()
                self._open = False

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Say inside the block that a model is loaded."""
        with self.open():
            self._show("loading the model")
            yield

    def watch(self, model: Llava) -> Llava:
        """Report the blocks that `model` runs from now on, while the line is open; return the model."""
        if self._open:
            model.probes.add(self._probe(model))
        return model

    def _probe(self, model: Llava) -> Progress:
        return Progress(Blocks.of(model.stages()), self._report)

    def step(self, text: str) -> None:
        """Say which step has been done; it stands before the blocks of the next one."""
        self._task = text
        self._show("")

    def _show(self, text: str) -> None:
        """Replace the line, unless it was replaced a moment ago. It is cut to the terminal's width."""
        now = time.monotonic()
        if not self._open or now - self._last < INTERVAL:
            return
        self._last, self._shown = now, True
        whole = " · ".join(filter(None, [self._task, text, f"{now - self._began:.0f} s"]))
        sys.stderr.write(ERASE + whole[: shutil.get_terminal_size().columns - 1])
        sys.stderr.flush()

    def erase(self) -> None:
        if self._shown:
            self._shown = False
            sys.stderr.write(ERASE)
            sys.stderr.flush()

    def counted(self, stream: Stream) -> Iterator[str]:
        """Yield an answer's pieces, and count its tokens. For an answer that does not appear on the terminal itself."""
        for step in stream.steps():
            self._show(f"{stream.n_tokens} tokens")
            yield step.text

    def _report(self, at: PictureProgress | PromptProgress) -> None:
        if isinstance(at, PictureProgress):
            number = f" {at.picture + 1} of {self._pictures}" if self._pictures > 1 else ""
            self._show(f"reading picture{number}: block {at.done} of {at.total}")
        elif not self._positions:
            self._show(f"positions {at.positions.start} to {at.positions.stop - 1}: layer {at.done} of {at.total}")
        elif at.positions.stop <= self._positions:
            self._show(f"reading the prompt: {at.position} of {self._positions} positions")


LINE = ProgressLine()
