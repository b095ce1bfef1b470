"""Render one jinja template with several contexts, in a child process that `sandbox` starts.

Standard input: JSON {"source": str, "contexts": [object, ...], "limits": {"seconds", "address_space", "output"}}, a
marked text as {"marked": [text, runs]}, an object with marked keys as {"pairs": [[key, value], ...]}. Standard output:
a line of JSON for each context as soon as it is done, {"text": str, "marks": runs} | {"raised": str} | {"error": str},
in UTF-8 with lone surrogates passed through. A run is
[length, mark]. The child imports only this folder and jinja2, so that it starts in well under 100 ms.
"""

import json
import re
import signal
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import FrameType
from typing import Any, NoReturn

import jinja2.debug  # jinja imports it when a template fails, but then no file can be opened
from jinja2.exceptions import SecurityError, TemplateRuntimeError, TemplateSyntaxError, UndefinedError

from .environment import Environment, TemplateRaised
from .marked import Marked, Untracked, joined, marks_of, plain

RUN = re.compile(r"(.)\1*", re.DOTALL)
NO_SUCH = re.compile(r"No (filter|test) named '(.*?)'")
Runs = list[tuple[int, int]]


class OutOfTime(BaseException):
    """Raised when a rendering has used its share of the time. Not an Exception, because jinja catches some of these."""


def pack(text: str) -> dict[str, Any]:
    """Convert a Marked text into an object that JSON can hold."""
    return {"marked": [plain(text), runs(text)]}


def unpack(value: dict[str, Any]) -> Any:
    """Restore what `pack` made, or an object with marked keys; return other objects as they are."""
    if value.keys() == {"pairs"}:
        return dict(value["pairs"])
    return with_marks(*value["marked"]) if value.keys() == {"marked"} else value


def runs(text: str) -> Runs:
    """Return the marks of a text as runs of equal marks: (length, mark)."""
    return [(len(run[0]), ord(run[1])) for run in RUN.finditer(marks_of(text))]


def with_marks(text: str, marks: Iterable[tuple[int, int]]) -> Marked:
    """Return `text` with the marks of these runs."""
    return Marked(text, "".join(chr(mark) * n for n, mark in marks))


@lru_cache(16)
def compiled(source: str) -> jinja2.Template:
    """Compile a template. The last 16 are kept."""
    return Environment().from_string(source)


def render(source: str, context: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Render at most `limit` UTF-8 bytes; return `text` and `marks`, what the template `raised`, or an `error`."""
    written, texts = 0, []
    try:
        for text in compiled(source).generate(context):
            written += len(plain(text).encode("utf-8", "surrogatepass"))
            if written > limit:
                return {"error": f"writes more than {limit} bytes"}
            texts.append(text)
        rendering = joined(texts)
        return {"text": plain(rendering), "marks": runs(rendering)}
    except Exception as error:  # a template can fail in any way, and none is a bug of ours
        return problem(error)


def problem(error: Exception) -> dict[str, str]:
    """Describe an error of a template for a person, with its line."""
    if isinstance(error, TemplateRaised):
        return {"raised": str(error)[:1000]}
    if isinstance(error, TemplateSyntaxError):
        return {"error": f"line {error.lineno}: {_syntax(error)}"[:1000]}
    line = _line(error)
    return {"error": f"{'' if line is None else f'line {line}: '}{_words(error)}"[:1000]}


def _syntax(error: TemplateSyntaxError) -> str:
    """Describe a syntax error, or a filter or test that does not exist."""
    message = str(error.message)
    missing = NO_SUCH.match(message)
    return (
        f"there is no {missing[1]} {missing[2]!r}" if missing else f"cannot be read: {message[:1].lower()}{message[1:]}"
    )


def _line(error: Exception) -> int | None:
    """Return the line of the template that failed. Jinja puts it into the traceback."""
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


def _words(error: Exception) -> str:
    """Describe an error in rendering."""
    if isinstance(error, MemoryError):
        return "needs more memory than it may use"
    if isinstance(error, RecursionError):
        return "recurses too deeply"
    if isinstance(error, ZeroDivisionError):
        return "divides by zero"
    if isinstance(error, OverflowError):
        return "computes a number that is too large"
    if isinstance(error, Untracked):
        return f"changes a text in a way that cannot be tracked: {error}"
    if missing := NO_SUCH.match(str(error)):
        return f"there is no {missing[1]} {missing[2]!r}"
    if isinstance(error, UndefinedError | SecurityError | TemplateRuntimeError):
        return str(error)
    return f"uses a value that does not fit there ({error})".replace("'Marked'", "'str'")


def confine(seconds: int, address_space: int) -> None:
    """Forbid new files and processes, and limit processor time to `seconds` and memory to `address_space` bytes."""
    import resource  # Windows lacks it, and renders only templates of our own

    limits = {"CPU": seconds, "NOFILE": 0, "FSIZE": 0, "CORE": 0, "NPROC": 0}
    if sys.platform != "darwin":  # macOS refuses this limit and accepts the others
        limits["AS"] = address_space
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a parent that ignores or blocks a signal passes this on
    signal.signal(signal.SIGPROF, _out_of_time)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGPROF})
    signal.alarm(5 * seconds)  # wall-clock time: a template cannot sleep, but a busy machine may make it wait


def _out_of_time(number: int, frame: FrameType | None) -> NoReturn:
    raise OutOfTime


def _render_within(seconds: float, source: str, context: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Render for at most `seconds`. Python code is stopped then; a long step in C runs until the kernel ends it."""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            return render(source, context, limit)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except OutOfTime:
        return {"error": f"needs more than {seconds:.2g} s"}


def main() -> None:
    """Read a job, confine this process, and write each rendering."""
    # jinja loads codecs and the time zone at first use, which must come while files can be opened
    Environment().from_string("{{ strftime_now('\\n') }}").render()
    job = json.loads(sys.stdin.buffer.read(), object_hook=unpack)
    limits, contexts = job["limits"], job["contexts"]
    confine(limits["seconds"], limits["address_space"])
    forms = len(contexts)
    share = limits["seconds"] / (forms + 1 if forms > 1 else 1)  # one more share for the start
    for context in contexts:
        result = _render_within(share, job["source"], context, limits["output"])
        line = json.dumps(result, ensure_ascii=False)
        sys.stdout.buffer.write(f"{line}\n".encode("utf-8", "surrogatepass"))
        sys.stdout.buffer.flush()
