"""Ask the process that runs llama.cpp: a line of JSON there, a line of JSON back."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import ParameterError
from ..measure import Lap, Repetition
from .library import LlamaCppError, find

WORKER = (sys.executable, "-m", "llava_ref.benchmark.llama_cpp.worker")


class LlamaProcess:
    """llama.cpp with a model: at rest, asleep on its pipe, unless it is asked. Every method raises ParameterError."""

    name = "llama.cpp"

    def __init__(
        self,
        text: Path,
        mmproj: Path | None,
        image: Path | None,
        n_prompt: int,
        n_gen: int,
        threads: int,
        command: Sequence[str] = WORKER,
    ) -> None:
        """Start the process, and let it open the library."""
        try:
            self.library = find()
        except LlamaCppError as error:
            raise _error(str(error)) from None
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        files = {"text": str(text), "mmproj": mmproj and str(mmproj), "image": image and str(image)}
        work = {"n_prompt": n_prompt, "n_gen": n_gen, "threads": threads}
        try:
            self.ask(library=str(self.library), **files, **work)
        except ParameterError:
            self.close()
            raise

    @property
    def wheel(self) -> bool:
        """Whether the library is a package's, built for any processor of the last ten years."""
        return "xllamacpp" in self.library.parts

    def load(self) -> Repetition:
        """Load everything anew."""
        return repetition(self.ask(do="load"))

    def run(self, prompt: Sequence[int], tokens: Sequence[int]) -> Repetition:
        """Run the picture and a prompt, and these tokens behind it."""
        return repetition(self.ask(do="run", prompt=list(prompt), tokens=list(tokens)))

    def about(self) -> dict[str, Any]:
        """Return `peak_rss_mb`, `same_tokens`, `system`, `ggml` and `library`."""
        return self.ask(do="about") | {"library": str(self.library)}

    def close(self) -> None:
        with suppress(OSError):
            self._process.communicate()
        self._said.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to one line."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # there is no answer then, and why is found below
            print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise _error(self._ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _error(answer["error"])
        return answer

    def _ended(self) -> str:
        """Say how the process ended, and what it said last."""
        status = self._process.wait()
        how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self._said.seek(0)
        words = self._said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        return f"{how}; last heard: {words or 'nothing'}"


def repetition(answer: dict[str, Any]) -> Repetition:
    """Return a repetition as it was before it became JSON."""
    laps = {stage: Lap(**lap) for stage, lap in answer["laps"].items()}
    return Repetition(laps, answer["seconds"], answer["others"])


def _error(problem: str) -> ParameterError:
    return ParameterError("--against", "llama.cpp", problem)
