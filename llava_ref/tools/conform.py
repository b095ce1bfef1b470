"""`conform`: compare this project with a reference on one pair, pictures and prompt, stage by stage, and say why they
differ.

The comparison and the references are in the package `llava_ref.conformance`, which no other command imports.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..errors import ParameterError, nearest, nearest_file, visible
from ..generation.request import Request
from ..html import signed
from ..model import Llava
from ..ops.threads import sleeping_openmp
from ..profiles import ImageOrder
from . import options
from .cases import ChatCase, add_cases, cases_file, read_cases
from .findings import as_json, print_report, settings
from .output import check_output, note, print_json, verdict, write_text
from .parser import Example, Parser
from .progress import LINE

if TYPE_CHECKING:
    from ..conformance.compare.conform import Conformance
    from ..conformance.engines.reference import Case, Reference


EXAMPLES: Sequence[Example] = (
    (
        'llava-ref conform --image cat.jpg -p "What is this?" --against llama.cpp',
        "the first stage that exceeds its bound and what explains it; exit code 1 if one does",
    ),
    (
        'llava-ref conform -p "Hello" --against this:backend=numpy --report report.html',
        "the same against this project with other settings, and a page with plots",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_images(parser)
    options.add_prompt(parser, required=False)
    add_cases(parser)
    parser.group("measurement").add_argument(
        "--against",
        required=True,
        metavar="REFERENCE",
        help="llama.cpp, hf, a trace file, a program that writes one, as in exec:./engine, or this project with other "
        "settings, as in this:backend=numpy,gelu=tanh",
    )
    options.add_max_tokens(parser, 12, "greedy tokens to compare (default: 12)")
    options.add_output(parser, "FILE.html", "write everything as one page with plots", "--report")
    options.add_text(parser)
    options.add_running(parser)
    parser.group("output").add_argument("--all", action="store_true", help="print the row of every stage")
    options.add_json(parser, "print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Return 0 if every stage and the outcome are within their bounds, for every case, and 1 if not."""
    text, mmproj = options.pair(args)
    if args.max_tokens < 0:
        raise ParameterError("--max-tokens", str(args.max_tokens), "expected a number of tokens from 0")
    if args.report is not None:
        check_output(args.report, [text, mmproj, *args.image, cases_file(args)])
    cases = _checked_cases(args)
    with LINE.loading():
        model = options.load_model(args, text, mmproj)
    reference = _reference(args.against, model)
    if cases is not None:
        return _run_cases(args, model, reference, cases)
    request = options.request(args, model)
    conversation = None if args.raw else options.messages(args)
    report = _compared(args, model, reference, _case(args, model, request, conversation, tuple(args.image)))
    if args.report is not None:
        from ..conformance.report.page import render

        _write(args, model, render(report, args.image), args.image)
    if args.json:
        print_json(as_json(report))
    else:
        print_report(report, every=args.all)
    return 0 if report.same else 1


def _checked_cases(args: argparse.Namespace) -> list[ChatCase] | None:
    """Return the cases, None without --cases. Raises ParameterError for options that belong to a single question."""
    if args.cases is None:
        if args.prompt is None:
            raise ParameterError("--prompt", "missing", "expected a question, or --cases with some")
        return None
    for flag, given in (("--raw", args.raw), ("--system", args.system)):
        if given:
            raise ParameterError(flag, "with --cases", "is for a single question")
    if Path(args.against).is_file():
        raise ParameterError("--against", args.against, "a trace file holds the run of a single question")
    return read_cases(args)


def _run_cases(args: argparse.Namespace, model: Llava, reference: "Reference", cases: Sequence[ChatCase]) -> int:
    reports = {}
    for conversation in cases:
        with tempfile.TemporaryDirectory() as folder:
            messages, images = conversation.with_files(Path(folder))
            case = _case(args, model, model.request(messages), messages, images)
            reports[conversation.name] = report = _compared(args, model, reference, case)
        if not args.json:
            print(f"{visible(conversation.name)}:")
            print_report(report, every=args.all)
            print()
    n_same = sum(report.same for report in reports.values())
    if args.report is not None:
        from ..conformance.report.cases import render

        _write(args, model, render(reports), [cases_file(args)])
    if args.json:
        listed = [{"custom_id": name} | as_json(report) for name, report in reports.items()]
        print_json({"same": n_same == len(reports), "cases": listed})
    else:
        print(verdict(f"{n_same} of {len(reports)} cases are within their bounds", n_same == len(reports)))
    return 0 if n_same == len(reports) else 1


def _write(args: argparse.Namespace, model: Llava, page: str, asked: Sequence[Path | None]) -> None:
    """Write the page, which names the models' files and those of what was `asked`."""
    paths = (*options.pair(args), *asked)
    write_text(args.report, signed(page, args.command, paths, model.facts()["runs"]))
    note(f"{args.report}: written")


def _case(
    args: argparse.Namespace, model: Llava, request: Request, messages: object, images: tuple[Path, ...]
) -> "Case":
    """Return a question as a reference takes it. `messages`: its conversation, None for a raw prompt."""
    from ..conformance.engines.reference import Case

    orders = {} if messages is None else {o: options.shown(messages, model, o) for o in get_args(ImageOrder)}
    return Case(*options.pair(args), images, request.prompt.shown, orders)


def _compared(args: argparse.Namespace, model: Llava, reference: "Reference", case: "Case") -> "Conformance":
    from ..conformance.compare.conform import conform

    note(f"running {reference.name}")
    answer = reference.run(case, n_greedy=args.max_tokens)
    note(f"running {settings(model.settings)}")
    with LINE.open(model):
        return conform(lambda changed: _with(args, model, changed), case, answer)


def _with(args: argparse.Namespace, model: Llava, changed: Mapping[str, str]) -> Llava:
    """Return the model itself, or one like it with some quirks changed."""
    if not changed:
        return model
    quirks = [*args.quirk, *(f"{name}={value}" for name, value in changed.items())]
    return LINE.watch(options.load_model(options.changed(args, quirk=quirks), *options.pair(args)))


def _reference(name: str, model: Llava) -> "Reference":
    """Return a reference by its name on the command line. Raises ParameterError for an unknown one."""
    if name == "llama.cpp":
        from ..conformance.engines.llama_cpp.engine import LlamaCpp
        from ..conformance.engines.llama_cpp.oracle import EXACT

        quirks = model.quirks
        rounded = model.settings["precision"] == "ggml"
        flash, half = rounded and quirks.flash_attention == "on", rounded and quirks.kv_cache == "f16"
        return LlamaCpp(replace(EXACT, flash_attention=int(flash), cache_type=int(half)))
    if name == "hf":
        with sleeping_openmp():
            from ..conformance.engines.hf.engine import Transformers

        return Transformers()
    from ..conformance.engines.this import Recorded, ThisProject

    kind, colon, settings = name.partition(":")
    if kind == "this" and colon:
        changed = _pairs(settings)
        own = {key: changed.pop(key) for key in ("backend", "device", "precision", "profile") if key in changed}
        return ThisProject(**own, quirks=changed)
    if kind == "exec" and colon:
        from ..conformance.engines.command import Command

        return Command(settings)
    if Path(name).is_file():
        return Recorded(Path(name))
    known = "expected llama.cpp, hf, a trace file, exec:COMMAND or this:NAME=VALUE,..."
    meant = nearest(name, ("llama.cpp", "hf")) or nearest_file(name)
    raise ParameterError("--against", repr(name), f"unknown, {known}{meant}")


def _pairs(settings: str) -> dict[str, str]:
    """Parse NAME=VALUE,... Raises ParameterError."""
    values = {}
    for pair in settings.split(","):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ParameterError("--against", repr(pair), "expected NAME=VALUE after 'this:', as in backend=numpy")
        values[name] = value
    return values
