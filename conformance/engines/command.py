"""Run any program as a reference: it gets the files, the prompt and the pictures, and writes a trace file."""

import shlex
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from .process import run_program
from .reference import Case, ReferenceError, Run
from .this import Recorded


class Command:
    """Runs `COMMAND -m TEXT.gguf [--mmproj MMPROJ.gguf] [--image FILE]... -f PROMPT.txt -n N -o OUT.safetensors`.

    PROMPT.txt is UTF-8, the rendered prompt as `Case.prompt` describes it; N is the number of greedy tokens asked for;
    OUT.safetensors is a trace file, as `Recorded` reads one. The program's standard output is not read; the last line
    of its standard error is said if it fails. Raises ReferenceError for a command that is no list of words."""

    def __init__(self, command: str, *, timeout: float = 600.0) -> None:
        try:
            self.words = shlex.split(command)
        except ValueError as error:
            raise ReferenceError("--against", "exec", f"{command!r}: {error}") from None
        if not self.words:
            raise ReferenceError("--against", "exec", "no command, expected one as in exec:./engine")
        self.name, self.timeout = command.strip(), timeout

    def run(self, case: Case, *, n_greedy: int = 0) -> Run:
        """Run the program once and read its trace file. Raises ReferenceError for anything but an answer."""
        with tempfile.TemporaryDirectory(prefix="llava-ref-") as folder:
            prompt, out = Path(folder, "prompt.txt"), Path(folder, "trace.safetensors")
            prompt.write_bytes(case.prompt.encode())
            files = [("-m", case.text), *([("--mmproj", case.mmproj)] if case.mmproj else [])]
            pictures = [("--image", image) for image in case.images]
            named = [*files, *pictures, ("-f", prompt), ("-n", n_greedy), ("-o", out)]
            self._start([str(word) for pair in named for word in pair])
            if not out.is_file():
                raise ReferenceError(self.name, "-o", "the program ended well and wrote no trace file")
            recorded = Recorded(out).run(case, n_greedy=n_greedy)
            return replace(recorded, name=self.name, stages=dict(recorded.stages))

    def _start(self, arguments: list[str]) -> None:
        """Run the program to its end."""
        try:
            ended = run_program([*self.words, *arguments], self.timeout, partial(ReferenceError, self.name))
        except OSError as error:
            raise ReferenceError(self.words[0], "command", error.strerror or str(error)) from None
        if ended.code:
            raise ReferenceError(self.name, "command", ended.how)
