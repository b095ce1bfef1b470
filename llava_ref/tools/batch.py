"""`batch`: answer a file of requests in OpenAI's batch format, on this machine or on the machines of a Ray cluster."""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import gguf
from ..chat.templates import TEMPLATES
from ..errors import ParameterError, visible
from ..extras import absent
from ..ops import arithmetic
from . import options
from .limits import add_hosts, add_limits, limits
from .output import check_output, note, print_json
from .parser import Example, Parser
from .progress import LINE

if TYPE_CHECKING:
    from ..batch.answering import Answerer
    from ..batch.lines import Task
    from ..batch.output import AnswerFile

OF_A_LINE = ("max_body", "max_images", "max_pixels")
SETTINGS = ("backend", "device", "precision", "profile", "template", "ctx_size", "strict", "allow_image_host")
SHOWN = 10
"""Lines without an answer that are named on standard error."""

EXAMPLES: Sequence[Example] = (
    (
        "llava-ref batch requests.jsonl -o answers.jsonl",
        "how many lines have an answer; the same command goes on where it was interrupted",
    ),
    (
        "llava-ref batch cases -o answers.jsonl --ray auto --json",
        "the counts as JSON, of a folder with cases.jsonl and pictures, on all machines of a cluster",
    ),
)


def add_arguments(parser: Parser) -> None:
    parser.group("files").add_argument(
        "input", type=Path, metavar="IN.jsonl", help="requests, one a line; or a folder with cases.jsonl and pictures"
    )
    options.add_output(parser, "OUT.jsonl", "answers, one a line, in the order of the requests")
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_text(parser)
    options.add_running(parser)
    parser.group("computation").add_argument(
        "--ray", metavar="ADDRESS", help="run on the cluster of this address: auto, or HOST:PORT"
    )
    add_hosts(parser)
    parser.group("access").add_argument(
        "--allow-image-dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of pictures that requests name as file://; repeatable",
    )
    add_limits(parser, (*OF_A_LINE, "max_running"))
    options.add_json(parser, "print the counts as JSON")


def run(args: argparse.Namespace) -> int:
    """Return 0 if every line has an answer, 1 if some have errors."""
    if problem := absent("server", ["starlette", "pydantic"]):
        raise ParameterError("batch", *problem.split(": ", 1))
    from ..batch.answering import URLS
    from ..batch.lines import Lines
    from ..batch.output import AnswerFile

    for folder in args.allow_image_dir:
        if not folder.is_dir():
            raise ParameterError("--allow-image-dir", str(folder), "not a folder")
    about = hashlib.sha256(json.dumps(facts(args), sort_keys=True).encode()).hexdigest()
    lines = Lines(args.input, about, limits(args), URLS, tuple(args.allow_image_dir))
    check_output(args.output, [lines.path, *options.pair(args)])
    with AnswerFile(args.output) as file:
        left = file.left(lines)
        before = file.n_lines
        if before:
            note(f"{args.output}: goes on behind {before} lines")
        if before < lines.total:
            _answer(args, file, left, lines.total)
    counts = {"total": lines.total, "completed": file.n_answered, "failed": file.n_failed, "resumed": before}
    if args.json:
        print_json(counts)
    else:
        print(f"{file.n_answered} of {lines.total} answered, {file.n_failed} with errors: {args.output}")
    return 1 if file.n_failed else 0


def facts(args: argparse.Namespace) -> dict[str, object]:
    """Return what answers depend on besides their lines: versions, files, settings. Raises GGUFError and OSError."""
    found: dict[str, object] = {name: metadata.version(name) for name in sorted({"llava-ref", "numpy", args.backend})}
    found |= arithmetic(args.backend) if args.device == "cpu" else {}
    if args.threads is not None:
        found["threads"] = args.threads
    if args.precision == "fast":  # whose numbers do not depend on them
        found.pop("threads", None)
    files = [file for file in options.pair(args) if file is not None]
    for file in files:
        gguf.read(file)  # raises an error for what is no model, before there is a file of answers
    settings = {name: getattr(args, name) for name in (*SETTINGS, *OF_A_LINE)}
    if args.template is not None and args.template not in TEMPLATES:
        files.append(Path(args.template))
        settings["template"] = "a file"
    return {
        **found,
        **{f"file {i} ({path.name})": digest for i, (path, digest) in enumerate(gguf.hashes(files).items(), 1)},
        "settings": json.dumps([settings, options.quirks(args)], sort_keys=True),
    }


def _answer(args: argparse.Namespace, file: "AnswerFile", tasks: "Iterator[Task]", total: int) -> None:
    """Answer what is left, on the terminal a line of progress."""
    from ..batch.output import InOrder

    order, estimate, shown = InOrder(tasks), Estimate(file.n_lines, total), 0
    with LINE.loading():
        answers = _answers(args)
    with LINE.open():
        for done in answers(order.take):
            for task, answer in order.put(*done):
                problem = file.write(answer)
                if problem and (shown := shown + 1) <= SHOWN:
                    named = problem if problem.startswith("line ") else f"line {task.number}: {problem}"
                    note(f"{args.input}: {visible(named)}")
                LINE.step(estimate.said(file.n_lines, file.n_failed))
    assert file.n_lines == total, "every line has an answer, or the run has ended with an error"
    if shown > SHOWN:
        note(f"{args.input}: {shown - SHOWN} more lines with errors, each with its own in {args.output}")


def _answers(args: argparse.Namespace) -> "Callable[[Callable[[], Task | None]], Iterator[tuple[Task, bytes]]]":
    """Return what answers tasks: this machine's model, or a cluster's."""
    if args.ray is None:
        return start(args).each
    if problem := absent("cluster", ["ray"]):
        raise ParameterError("--ray", *problem.split(": ", 1))
    from ..batch.cluster import Cluster

    there = _absolute(args)
    return Cluster(args.ray, partial(facts, there), partial(start, there), note, cards=args.device == "cuda").each


def _absolute(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments with paths that do not depend on the folder of a process."""
    paths = {name: getattr(args, name) for name in ("model", "mmproj", "template") if getattr(args, name) is not None}
    if paths.get("template") in TEMPLATES:
        del paths["template"]
    return options.changed(args, **{name: type(path)(Path(path).resolve()) for name, path in paths.items()})


def start(args: argparse.Namespace) -> "Answerer":
    """Load the model, here or in a process of a cluster."""
    from ..api.fetch import Fetcher
    from ..api.models import Models
    from ..batch.answering import Answerer

    def load(text: Path, mmproj: Path | None, n_context: int | None) -> Any:
        return options.load_model(options.changed(args, ctx_size=n_context), text, mmproj)

    checked = limits(args)
    fetch = Fetcher(tuple(args.allow_image_host)) if args.allow_image_host else None
    models = Models(load, max_running=checked.max_running)
    return Answerer(models.start(*options.pair(args), args.ctx_size), checked, fetch, args.strict)


class Estimate:
    """Estimates how long a batch will take yet, by the lines answered since it began."""

    def __init__(self, before: int, total: int) -> None:
        self._before, self._total, self._began = before, total, time.monotonic()

    def said(self, n: int, n_failed: int) -> str:
        """Say how far it is with `n` lines."""
        text = f"{n} of {self._total} lines"
        if n_failed:
            text += f", {n_failed} with errors"
        if n < self._total:
            text += f" · {about((time.monotonic() - self._began) / (n - self._before) * (self._total - n))} left"
        return text


def about(seconds: float) -> str:
    """Return a time in the largest of units that has two or more of it: 90 s, 2 min, 119 min, 2 h."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} s"
