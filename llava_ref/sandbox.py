"""Runs a chat template from a model file where it can do no harm: in a child process with hard limits.

jinja2's sandbox keeps a template from the interpreter's objects, but not from time and memory; the kernel does that.
The child is a bare Python (isolated, no `site`, empty environment, no inherited files) that reads one JSON job and
writes one JSON answer. Starting it takes about 80 ms; it needs 25 MB of the 256 MB of address space it is allowed.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from . import sandbox_child
from .errors import TemplateError

SECONDS = 2  # of processor time; twice that by the clock, once the child has started
PATIENCE = 20  # seconds by the clock for everything, a slow start on a busy machine included
ADDRESS_SPACE = 256 << 20  # bytes, the child's own 25 MB included
OUTPUT = 1 << 20  # UTF-8 bytes of one rendering
CHILD = Path(sandbox_child.__file__).absolute()
OUT_OF_TIME = {-9, -14, -24}  # SIGKILL, SIGALRM, SIGXCPU: no such names on Windows


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rendering: its text, or what went wrong. `raised`: the template itself refused, in its own words."""

    text: str | None
    problem: str = ""
    raised: bool = False


def run(source: str, contexts: Sequence[Mapping[str, Any]], field: str) -> list[Outcome]:
    """Each context through the jinja template `source`, all in one child. Contexts hold JSON values only.

    A template that fails gives an Outcome with a problem. TemplateError(where "chat template", `field`) where no
    rendering could be finished: out of time, crashed, or no child can be started.
    """
    limits = {"seconds": SECONDS, "address_space": ADDRESS_SPACE, "output": OUTPUT}
    job = json.dumps({"source": source, "contexts": list(contexts), "limits": limits})
    code, answer = _child(job.encode("ascii"), len(contexts) * 6 * OUTPUT + 4096, field)  # JSON: at most 6 bytes each
    if code in OUT_OF_TIME:
        raise TemplateError("chat template", field, f"stopped: it needs more than {SECONDS} s")
    if code:
        died = f"signal {-code}" if code < 0 else f"exit status {code}"
        raise TemplateError("chat template", field, f"stopped: out of memory or crashed ({died})")
    try:
        return outcomes(json.loads(answer.decode("utf-8", "surrogatepass")))
    except ValueError:
        raise TemplateError("chat template", field, "its process gave no readable answer") from None


def run_trusted(source: str, contexts: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """The same in this process, without limits on time and memory: for templates of our own."""
    return outcomes(sandbox_child.render_each(source, contexts, OUTPUT))


def outcomes(results: Sequence[Mapping[str, str]]) -> list[Outcome]:
    """The child's answer as a list of Outcome."""
    return [
        Outcome(r["text"]) if "text" in r else Outcome(None, r.get("raised") or r["error"], "raised" in r)
        for r in results
    ]


def _child(job: bytes, most: int, field: str) -> tuple[int, bytes]:
    """Exit code and at most `most` bytes of output. The child has ended and been waited for, whatever happens."""
    try:
        child = subprocess.Popen(
            [str(sys.executable), "-I", "-S", "-B", str(CHILD), *_library_folders()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
    except OSError as error:
        raise TemplateError("chat template", field, f"no process to render it in: {error.strerror}") from error
    assert child.stdin and child.stdout
    timer = threading.Timer(PATIENCE, child.kill)
    timer.start()
    try:
        with suppress(BrokenPipeError), child.stdin:  # a child that died early says why by its exit code
            child.stdin.write(job)  # it reads all of this before it looks at the template: no deadlock
        with child.stdout:
            answer = child.stdout.read(most)
        return child.wait(), answer  # with its output closed the child ends, or the timer ends it
    finally:
        timer.cancel()
        timer.join()
        child.kill()
        child.wait()


def _library_folders() -> set[str]:
    """Where jinja2 and markupsafe are installed: without `site` the child cannot know."""
    return {str(Path(module.__file__).absolute().parents[1]) for module in (jinja2, markupsafe) if module.__file__}
