"""Runs a chat template from a model file where it can do no harm: in a child process with hard limits.

jinja2's sandbox keeps a template from the interpreter's objects, but not from time and memory; the kernel does that.
The child is a bare Python (isolated, no `site`, empty environment, no inherited files) that reads one JSON job and
writes a line of JSON for each rendering; once nobody wants another, it is ended. Starting it takes about 80 ms; it
needs 25 MB of the 256 MB of address space it is allowed. What runs inside is the folder `sandboxed`.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from ..errors import TemplateError
from . import sandboxed
from .sandboxed import child
from .sandboxed.marked import Marked, plain

SECONDS = 2  # of processor time; five times that by the clock, once the child has started
PATIENCE = 20  # seconds by the clock for everything, a slow start on a busy machine included
ADDRESS_SPACE = 256 << 20  # bytes, the child's own 25 MB included
OUTPUT = 1 << 20  # UTF-8 bytes of one rendering, besides as many as were said
ANSWER = 32  # bytes of an answer for each byte of a rendering: at most 6 in JSON, and a mark of fewer than 24
UNLIMITED = "templates of files run under limits that this system (Windows) lacks: name one of ours instead"
START = "import sys; sys.path.extend(sys.argv[1:]); from sandboxed.child import main; main()"
OUT_OF_TIME = {-9, -14, -24}  # SIGKILL, SIGALRM, SIGXCPU: no such names on Windows


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rendering: its text, or what went wrong. `raised`: the template itself refused, in its own words."""

    text: Marked | None
    problem: str = ""
    raised: bool = False


def run(source: str, contexts: Sequence[Mapping[str, Any]], where: str, field: str) -> Iterator[Outcome]:
    """Yield each context through the jinja template `source`, one by one, all in one child. Contexts hold JSON values,
    and texts as Marked.

    A template that fails gives an Outcome with a problem. TemplateError(`where`, `field`) where a rendering could not
    be finished: out of time, crashed, or no child can be started.
    """
    if not _has_limits():
        raise TemplateError(where, field, UNLIMITED)
    output = OUTPUT + max(map(_said, contexts), default=0)
    limits = {"seconds": SECONDS, "address_space": ADDRESS_SPACE, "output": output}
    job = json.dumps({"source": source, "contexts": [_packed(context) for context in contexts], "limits": limits})
    try:
        with _child(job.encode("ascii")) as process:
            assert process.stdout
            for _ in contexts:
                yield _outcome(process.stdout.readline(ANSWER * output), process)
    except _NoAnswer as error:
        raise TemplateError(where, field, str(error)) from None


def run_trusted(source: str, contexts: Sequence[Mapping[str, Any]]) -> Iterator[Outcome]:
    """The same in this process, without limits on time and memory: for templates of our own."""
    return (_read(child.render(source, context, OUTPUT + _said(context))) for context in contexts)


def _has_limits() -> bool:
    try:
        import resource  # noqa: F401
    except ImportError:
        return False
    return True


class _NoAnswer(Exception):
    """Raised in words for a person."""


def _packed(value: Any) -> Any:
    if isinstance(value, Marked):
        return child.pack(value)
    if isinstance(value, Mapping):
        return {key: _packed(x) for key, x in value.items()}
    return [_packed(x) for x in value] if isinstance(value, list) else value


def _said(value: Any) -> int:
    """UTF-8 bytes of the texts with marks in a context."""
    if isinstance(value, Marked):
        return len(plain(value).encode("utf-8", "surrogatepass"))
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return sum(map(_said, items))


def _outcome(line: bytes, process: "subprocess.Popen[bytes]") -> Outcome:
    if not line.endswith(b"\n"):
        if line:
            raise _NoAnswer("its process gave no readable answer")
        code = process.wait()  # with its output closed the child ends, or the timer ends it
        if code in OUT_OF_TIME:
            raise _NoAnswer(f"stopped: it needs more than {SECONDS} s")
        died = f"signal {-code}" if code < 0 else f"exit status {code}"
        raise _NoAnswer(f"stopped: out of memory or crashed ({died})")
    try:
        return _read(json.loads(line.decode("utf-8", "surrogatepass")))
    except (ValueError, LookupError, TypeError):
        raise _NoAnswer("its process gave no readable answer") from None


def _read(result: Mapping[str, Any]) -> Outcome:
    if "text" in result:
        return Outcome(child.unmarked(result["text"], result["marks"]))
    return Outcome(None, result.get("raised") or result["error"], "raised" in result)


@contextmanager
def _child(job: bytes) -> Iterator["subprocess.Popen[bytes]"]:
    """A child that has been given its job. It has ended and been waited for afterwards, whatever happens."""
    try:
        process = subprocess.Popen(
            [str(sys.executable), "-I", "-S", "-B", "-c", START, *_library_folders()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
    except OSError as error:
        raise _NoAnswer(f"no process to render it in: {error.strerror}") from error
    assert process.stdin and process.stdout
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        with suppress(BrokenPipeError), process.stdin:  # a child that died early says why by its exit code
            process.stdin.write(job)  # it reads all of this before it looks at the template: no deadlock
        with process.stdout:
            yield process
    finally:
        timer.cancel()
        timer.join()
        process.kill()
        process.wait()


def _library_folders() -> set[str]:
    """Where jinja2, markupsafe and `sandboxed` lie: without `site` the child cannot know."""
    modules = (jinja2, markupsafe, sandboxed)
    return {str(Path(module.__file__).absolute().parents[1]) for module in modules if module.__file__}
