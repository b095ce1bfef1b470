"""Run a program to its end, and say in one line how it ended."""

import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ended:
    """Holds a program's exit code, or the negative number of the signal that ended it, and the last line that it wrote
    to standard error."""

    code: int
    said: str

    @property
    def how(self) -> str:
        how = f"ended with exit code {self.code}" if self.code >= 0 else f"ended by {signal.Signals(-self.code).name}"
        return f"{how}; last heard: {self.said or 'nothing'}"


def run_program(words: Sequence[str], timeout: float, failure: Callable[[str, str], Exception]) -> Ended:
    """Run a program without input and without reading its output.

    Raises what `failure` makes of a field and a problem if there is no end after `timeout` seconds, and OSError for a
    program that cannot be started."""
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(words, stdin=quiet, stdout=quiet, stderr=subprocess.PIPE, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise failure("time", f"no answer after {timeout:g} s") from None
    return Ended(done.returncode, done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
