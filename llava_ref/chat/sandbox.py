"""Run a chat template of a model file in a child process with hard limits, where it can do no harm.

jinja2's sandbox protects the interpreter's objects; the kernel limits time and memory. The child is a bare Python
(isolated, no `site`, empty environment, no inherited files) that reads one JSON job and writes a line of JSON for each
rendering. It is ended when no further rendering is needed. Starting it takes about 80 ms, and it needs 25 MB of the
256 MB of address space it may use. The folder `sandboxed` is the code that runs inside.
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

SECONDS = 2  # of processor time, or five times as many of wall-clock time after the start
PATIENCE = 20  # seconds of wall-clock time in total, with a slow start on a busy machine
ADDRESS_SPACE = 256 << 20  # bytes, the child's own 25 MB included
OUTPUT = 1 << 20  # UTF-8 bytes of one rendering, in addition to those of the users' texts
REPLY = 32  # bytes of the child's reply for each byte of a rendering: at most 6 in JSON, and a mark of fewer than 24
UNLIMITED = "templates of files run under limits that this system (Windows) lacks, expected the name of one of ours"
START = "import sys; sys.path.extend(sys.argv[1:]); from sandboxed.child import main; main()"
OUT_OF_TIME = {-9, -14, -24}  # SIGKILL, SIGALRM, SIGXCPU: no such names on Windows


@dataclass(frozen=True, slots=True)
class Rendering:
    """The result of one rendering: a text or a problem. `raised`: the template itself refused, in its own words."""

    text: Marked | None
    problem: str = ""
    raised: bool = False


def run(source: str, contexts: Sequence[Mapping[str, Any]], where: str, field: str) -> Iterator[Rendering]:
    """Render the jinja template `source` with each context, one by one, all in one child.

    Contexts hold JSON values, and texts as Marked. A template that fails gives a Rendering with a problem. Raises
    TemplateError(`where`, `field`) if a rendering cannot be finished: out of time, crashed, or no child can be started.
    """
    if not _has_limits():
        raise TemplateError(where, field, UNLIMITED)
    output = OUTPUT + max(map(_text_bytes, contexts), default=0)
    limits = {"seconds": SECONDS, "address_space": ADDRESS_SPACE, "output": output}
    job = json.dumps({"source": source, "contexts": [_packed(context) for context in contexts], "limits": limits})
    try:
        with _child(job.encode("ascii")) as process:
            assert process.stdout
            for _ in contexts:
                yield _receive(process.stdout.readline(REPLY * output), process)
    except _NoReply as error:
        raise TemplateError(where, field, str(error)) from None


def run_trusted(source: str, contexts: Sequence[Mapping[str, Any]]) -> Iterator[Rendering]:
    """Render as `run` does, in this process and without limits on time and memory: for templates of our own."""
    return (_read(child.render(source, context, OUTPUT + _text_bytes(context))) for context in contexts)


def _has_limits() -> bool:
    """Say whether this system can limit a process."""
    try:
        import resource  # noqa: F401
    except ImportError:
        return False
    return True


class _NoReply(Exception):
    """Raised if the child gives no result. Its text is the problem that a TemplateError names."""


def _packed(value: Any) -> Any:
    """Replace each Marked text in a context by a form that JSON can hold."""
    if isinstance(value, Marked):
        return child.pack(value)
    if isinstance(value, Mapping):
        if any(isinstance(key, Marked) for key in value):
            return {"pairs": [[_packed(key), _packed(x)] for key, x in value.items()]}
        return {key: _packed(x) for key, x in value.items()}
    return [_packed(x) for x in value] if isinstance(value, list) else value


def _text_bytes(value: Any) -> int:
    """Count the UTF-8 bytes of the marked texts in a context."""
    if isinstance(value, Marked):
        return len(plain(value).encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        return sum(_text_bytes(x) for pair in value.items() for x in pair)
    return sum(map(_text_bytes, value)) if isinstance(value, list) else 0


def _receive(line: bytes, process: "subprocess.Popen[bytes]") -> Rendering:
    """Decode a line that the child wrote. Raises _NoReply with the cause if it is cut or malformed."""
    if not line.endswith(b"\n"):
        if line:
            raise _NoReply("its process gave no readable answer")
        code = process.wait()  # its output is closed: it ends by itself, or the timer ends it
        if code in OUT_OF_TIME:
            raise _NoReply(f"stopped: it needs more than {SECONDS} s")
        died = f"signal {-code}" if code < 0 else f"exit status {code}"
        raise _NoReply(f"stopped: out of memory or crashed ({died})")
    try:
        return _read(json.loads(line.decode("utf-8", "surrogatepass")))
    except (ValueError, LookupError, TypeError):
        raise _NoReply("its process gave no readable answer") from None


def _read(result: Mapping[str, Any]) -> Rendering:
    """Convert the result of `child.render`."""
    if "text" in result:
        return Rendering(child.with_marks(result["text"], result["marks"]))
    return Rendering(None, result.get("raised") or result["error"], "raised" in result)


@contextmanager
def _child(job: bytes) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a child and write its job. It is always ended and waited for on exit."""
    try:
        process = subprocess.Popen(
            [str(sys.executable), "-I", "-S", "-B", "-c", START, *_library_folders()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,  # so that Ctrl-C reaches only this process
        )
    except OSError as error:
        raise _NoReply(f"no process to render it in: {error.strerror}") from error
    assert process.stdin and process.stdout
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        with suppress(BrokenPipeError), process.stdin:  # the exit code of a child that died early names the cause
            process.stdin.write(job)  # no deadlock: it reads all of this before it starts
        with process.stdout:
            yield process
    finally:
        timer.cancel()
        timer.join()
        process.kill()
        process.wait()


def _library_folders() -> set[str]:
    """Return the folders of jinja2, markupsafe and `sandboxed`, which the child cannot find without `site`."""
    modules = (jinja2, markupsafe, sandboxed)
    return {str(Path(module.__file__).absolute().parents[1]) for module in modules if module.__file__}
