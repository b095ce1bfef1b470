"""Renders one jinja template over several contexts. Runs as a script in a child process; `sandbox` starts it.

Standard input: JSON {"source": str, "contexts": [object, ...], "limits": {"seconds", "address_space", "output"}}.
Standard output: JSON [{"text": str} | {"raised": str} | {"error": str}, ...], one per context, in UTF-8 with lone
surrogates passed through. Imports nothing of this package, so that it starts in well under 100 ms.

The environment is the one Hugging Face templates are written for (transformers, utils/chat_template_utils.py):
immutable sandbox, trim_blocks, lstrip_blocks, loop controls, `{% generation %}` blocks, a `tojson` that does not escape
for HTML, and the functions `raise_exception`, `strftime_now`, `namespace`, `dict`, `range`. There is no loader.
"""

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

if __name__ == "__main__":  # isolated and without `site`: the parent says where jinja2 and markupsafe live
    sys.path.extend(sys.argv[1:])

import jinja2.debug  # jinja imports it when a template fails, and by then no file can be opened
import jinja2.exceptions
import jinja2.ext
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.parser import Parser


class Raised(Exception):
    """The template called `raise_exception`."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks answers for training; the body is rendered as it stands."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Namespace(jinja2.utils.Namespace):
    """Jinja's, whose attributes could otherwise stand in for Python's own (`__html__`, `__class__` and the like)."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def namespace(*pairs: Any, **values: Any) -> Namespace:
    made = Namespace()
    for name, value in dict(*pairs, **values).items():
        made[name] = value
    return made


def make_dict(*pairs: Any, **values: Any) -> dict[Any, Any]:
    """`dict`, without the class and its attributes."""
    return dict(*pairs, **values)


def raise_exception(message: object) -> NoReturn:
    raise Raised(str(message))


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """What a chat template can use."""
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    del env.globals["lipsum"]
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    env.globals.update(namespace=namespace, dict=make_dict)
    return env


def render_each(source: str, contexts: Sequence[Mapping[str, Any]], limit: int) -> list[dict[str, str]]:
    """One result per context: `text` of at most `limit` UTF-8 bytes, what the template `raised`, or an `error`."""
    try:
        template = environment().from_string(source)
    except Exception as error:
        return [_problem(error)] * len(contexts)
    return [_render(template, context, limit) for context in contexts]


def _render(template: jinja2.Template, context: Mapping[str, Any], limit: int) -> dict[str, str]:
    written, pieces = 0, []
    try:
        for piece in template.generate(context):
            written += len(piece.encode("utf-8", "surrogatepass"))
            if written > limit:
                return {"error": f"writes more than {limit} bytes"}
            pieces.append(piece)
    except Exception as error:  # a template can fail in any way, and each is the template's fault
        return _problem(error)
    return {"text": "".join(pieces)}


def _problem(error: Exception) -> dict[str, str]:
    if isinstance(error, Raised):
        return {"raised": str(error)[:1000]}
    if isinstance(error, MemoryError):
        return {"error": "needs more memory than it may use"}
    if isinstance(error, RecursionError):
        return {"error": "recurses too deeply"}
    if isinstance(error, jinja2.TemplateSyntaxError):
        return {"error": f"line {error.lineno}: {error.message}"[:1000]}
    return {"error": f"{type(error).__name__}: {error}"[:1000]}


def confine(seconds: int, address_space: int) -> None:
    """From here on: no more files or processes, `seconds` of processor time, `address_space` bytes of memory."""
    import resource  # not on Windows, where only templates of our own can be rendered

    limits = {"CPU": seconds, "NOFILE": 0, "FSIZE": 0, "CORE": 0, "NPROC": 0}
    if sys.platform != "darwin":  # macOS refuses to set it; the other limits hold there
        limits["AS"] = address_space
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a parent that ignores or blocks the signal hands that down
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.alarm(2 * seconds)  # by the clock: a template cannot wait, but a busy machine lets it


def main() -> None:
    # codecs, the time zone: what jinja reads at first use must be read while files can be opened
    environment().from_string("{{ strftime_now('\\n') }}").render()
    job = json.loads(sys.stdin.buffer.read())
    limits = job["limits"]
    confine(limits["seconds"], limits["address_space"])
    results = render_each(job["source"], job["contexts"], limits["output"])
    sys.stdout.buffer.write(json.dumps(results, ensure_ascii=False).encode("utf-8", "surrogatepass"))


if __name__ == "__main__":
    main()
