"""`apicheck`: check any OpenAI-format vision server against what OpenAI's reference and its SDKs demand.

The demands are in the package `llava_ref.conformance.api`, which no other command imports.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ParameterError, visible
from ..html import signed
from . import options
from .output import check_output, note, print_json, verdict, write_text
from .parser import Example, Parser
from .progress import LINE

if TYPE_CHECKING:
    from ..conformance.api.suite import ApiReport, Judged

EXAMPLES: Sequence[Example] = (
    (
        "llava-ref apicheck http://127.0.0.1:3928/v1",
        "the verdict, each demand that is not met, what came instead, and a curl line that shows it; exit code 1 if a "
        "must is not met",
    ),
    (
        "llava-ref apicheck http://127.0.0.1:8080/v1 --only streams --only pictures.gif --report api.html",
        "the same for some demands, and a page with all of them",
    ),
)
HIDDEN = "KEY"


def add_arguments(parser: Parser) -> None:
    group = parser.group("question")
    group.add_argument("url", metavar="URL", help="the server's base, as for OpenAI's clients: http://HOST:PORT/v1")
    group.add_argument(
        "--model", metavar="NAME", help="the model to ask for (default: the first that the server lists)"
    )
    group.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="a demand, as in pictures.gif, or a group of them, as in pictures; repeatable (default: all)",
    )  # fmt: skip
    parser.group("access").add_argument("--api-key", metavar="KEY", help="sent as a bearer token; not written anywhere")
    parser.group("limits").add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="for each answer (default: 120)"
    )
    options.add_output(parser, "FILE.html", "write all demands as one page", "--report")
    options.add_json(parser, "print one JSON object: each demand, its verdict, and what was sent")


def run(args: argparse.Namespace) -> int:
    """Check every demand, print the report, and return 1 if a must is not met."""
    from ..conformance.api.suite import chosen, first_model, run
    from ..conformance.api.target import Target

    cases = chosen(args.only)
    if not 0 < args.timeout <= 3600:
        raise ParameterError("--timeout", str(args.timeout), "expected more than 0 and at most 3600 seconds")
    if args.report is not None:
        check_output(args.report, [])
    target = Target(args.url, args.model or "default", args.api_key, args.timeout)
    listed = first_model(target)
    target.model = args.model or listed
    report = run(target, cases, _Told(len(cases)))
    LINE.erase()
    if args.report is not None:
        from ..conformance.api.page import render

        command = args.command.replace(args.api_key, HIDDEN) if args.api_key else args.command
        write_text(args.report, signed(render(report), command, (), f"checked {report.url}, model {report.model}"))
        note(f"{args.report}: written")
    if args.json:
        print_json(report.as_json())
    else:
        _print(report)
    return 0 if report.sound else 1


class _Told:
    """Shows on a terminal which demand was judged last."""

    def __init__(self, n: int) -> None:
        self._n, self._done = n, 0

    def __call__(self, one: "Judged") -> None:
        self._done += 1
        if sys.stderr.isatty():
            LINE.erase()
            print(f"{self._done} of {self._n}: {one.case.name}: {one.verdict}", end="\r", file=sys.stderr, flush=True)


def _print(report: "ApiReport") -> None:
    """Print the verdict first, then what is not met and how to see it, then the table."""
    from ..conformance.api.suite import LEVELS

    missed = [one for one in report.judged if one.verdict == "fail"]
    n = sum(one.case.level == "must" for one in missed)
    said = "every must is met" if report.sound else f"{n} must{' is' if n == 1 else 's are'} not met"
    print(verdict(visible(f"{report.url}, model {report.model}: {said}"), report.sound))
    for one in sorted(missed, key=lambda one: LEVELS.index(one.case.level)):
        print(f"\n{one.case.level} {one.case.name}: {one.case.demand}\n  from: {one.case.source}")
        print(visible(f"  came: {one.why}\n  {one.curl}"))
    skipped = [one for one in report.judged if one.verdict == "skip"]
    if skipped:
        print("\nnot judged:")
    for one in skipped:
        print(visible(f"  {one.case.name}: {one.why}"))
    print(f"\n{'':8}{'met':>6}{'not':>6}{'not judged':>12}")
    for level in LEVELS:
        counts = [report.count(level, found) for found in ("pass", "fail", "skip")]
        print(f"{level:8}{counts[0]:6}{counts[1]:6}{counts[2]:12}")
