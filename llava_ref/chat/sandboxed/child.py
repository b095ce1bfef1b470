"""Renders one jinja template over several contexts, in a child process that `sandbox` starts.

Standard input: JSON {"source": str, "contexts": [object, ...], "limits": {"seconds", "address_space", "output"}}, a
text with marks as {"marked": [text, runs]}. Standard output: a line of JSON for each context as soon as it is done,
{"text": str, "marks": runs} | {"raised": str} | {"error": str}, in UTF-8 with lone surrogates passed through. A run is
[characters, mark]. Imports nothing but this folder and jinja2, so that it starts in well under 100 ms.
"""

import json
import re
import signal
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import FrameType
from typing import Any, NoReturn

import jinja2.debug  # jinja imports it when a template fails, and by then no file can be opened
from jinja2.exceptions import SecurityError, TemplateRuntimeError, TemplateSyntaxError, UndefinedError

from .environment import Environment, Raised
from .marked import Marked, Unfollowed, joined, marks_of, plain

RUN = re.compile(r"(.)\1*", re.DOTALL)
NO_SUCH = re.compile(r"No (filter|test) named '(.*?)'")
Runs = list[tuple[int, int]]


class OutOfTime(BaseException):
    """Raised when a rendering has had its share of the time. Not an Exception: jinja catches some."""


def pack(text: str) -> dict[str, Any]:
    """Return a Marked text as JSON can hold it."""
    return {"marked": [plain(text), runs(text)]}


def unpack(found: dict[str, Any]) -> Any:
    """Return what `pack` packed; other objects as they are."""
    return unmarked(*found["marked"]) if found.keys() == {"marked"} else found


def runs(text: str) -> Runs:
    """Return the marks of a text as runs of equal ones."""
    return [(len(found[0]), ord(found[1])) for found in RUN.finditer(marks_of(text))]


def unmarked(text: str, marks: Iterable[tuple[int, int]]) -> Marked:
    """Return the text that has these runs."""
    return Marked(text, "".join(chr(mark) * n for n, mark in marks))


@lru_cache(16)
def compiled(source: str) -> jinja2.Template:
    return Environment().from_string(source)


def render(source: str, context: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Return the `text` of at most `limit` UTF-8 bytes and its `marks`, what the template `raised`, or an `error`."""
    written, pieces = 0, []
    try:
        for piece in compiled(source).generate(context):
            written += len(plain(piece).encode("utf-8", "surrogatepass"))
            if written > limit:
                return {"error": f"writes more than {limit} bytes"}
            pieces.append(piece)
        text = joined(pieces)
        return {"text": plain(text), "marks": runs(text)}
    except Exception as error:  # a template can fail in any way, and each is the template's fault
        return problem(error)


def problem(error: Exception) -> dict[str, str]:
    """Say what went wrong in words for a person, with the line of the template."""
    if isinstance(error, Raised):
        return {"raised": str(error)[:1000]}
    if isinstance(error, TemplateSyntaxError):
        return {"error": f"line {error.lineno}: {_syntax(error)}"[:1000]}
    line = _line(error)
    return {"error": f"{'' if line is None else f'line {line}: '}{_words(error)}"[:1000]}


def _syntax(error: TemplateSyntaxError) -> str:
    message = str(error.message)
    found = NO_SUCH.match(message)
    return f"there is no {found[1]} {found[2]!r}" if found else f"cannot be read: {message[:1].lower()}{message[1:]}"


def _line(error: Exception) -> int | None:
    """The line of the template that was being rendered: jinja writes it into the traceback."""
    found, at = None, error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == "<template>":
            found = at.tb_lineno
        at = at.tb_next
    return found


def _words(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "needs more memory than it may use"
    if isinstance(error, RecursionError):
        return "recurses too deeply"
    if isinstance(error, ZeroDivisionError):
        return "divides by zero"
    if isinstance(error, OverflowError):
        return "computes a number that is too large"
    if isinstance(error, Unfollowed):
        return f"changes what was said in a way that cannot be followed: {error}"
    if found := NO_SUCH.match(str(error)):
        return f"there is no {found[1]} {found[2]!r}"
    if isinstance(error, UndefinedError | SecurityError | TemplateRuntimeError):
        return str(error)
    return f"uses a value that does not fit there ({error})".replace("'Marked'", "'str'")


def confine(seconds: int, address_space: int) -> None:
    """From here on: no more files or processes, `seconds` of processor time, `address_space` bytes of memory."""
    import resource  # not on Windows, where only templates of our own can be rendered

    limits = {"CPU": seconds, "NOFILE": 0, "FSIZE": 0, "CORE": 0, "NPROC": 0}
    if sys.platform != "darwin":  # macOS refuses to set it; the other limits hold there
        limits["AS"] = address_space
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a parent that ignores or blocks the signal hands that down
    signal.signal(signal.SIGPROF, _out_of_time)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGPROF})
    signal.alarm(5 * seconds)  # by the clock: a template cannot wait, but a busy machine lets it


def _out_of_time(number: int, frame: FrameType | None) -> NoReturn:
    raise OutOfTime


def _render_within(seconds: float, source: str, context: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """As `render`. Python code that takes longer is stopped; one long step in C goes on until the kernel ends it."""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            return render(source, context, limit)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except OutOfTime:
        return {"error": f"needs more than {seconds:.2g} s"}


def main() -> None:
    # codecs, the time zone: what jinja reads at first use must be read while files can be opened
    Environment().from_string("{{ strftime_now('\\n') }}").render()
    job = json.loads(sys.stdin.buffer.read(), object_hook=unpack)
    limits, contexts = job["limits"], job["contexts"]
    confine(limits["seconds"], limits["address_space"])
    forms = len(contexts)
    share = limits["seconds"] / (forms + 1 if forms > 1 else 1)  # the start takes some, too
    for context in contexts:
        result = _render_within(share, job["source"], context, limits["output"])
        line = json.dumps(result, ensure_ascii=False)
        sys.stdout.buffer.write(f"{line}\n".encode("utf-8", "surrogatepass"))
        sys.stdout.buffer.flush()
