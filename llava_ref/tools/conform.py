"""`conform`: compare this project with a reference on one pair, pictures and prompt, stage by stage, and say why they
differ.

The comparison and the references are in the package `llava_ref.conformance`, which no other command imports.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..errors import ParameterError, nearest, nearest_file, visible
from ..html import signed
from ..model import Llava
from ..ops.threads import sleeping_openmp
from ..profiles import QUIRKS, ImageOrder
from . import options
from .output import check_output, coloured, note, print_json, write_text
from .parser import Example, Parser
from .progress import LINE

if TYPE_CHECKING:
    from ..conformance.compare.conform import Conformance, StageResult
    from ..conformance.engines.reference import Reference


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
    options.add_prompt(parser)
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
    """Return 0 if every stage and the outcome are within their bounds, 1 if not."""
    from ..conformance.compare.conform import conform
    from ..conformance.engines.reference import Case

    text, mmproj = options.pair(args)
    if args.max_tokens < 0:
        raise ParameterError("--max-tokens", str(args.max_tokens), "expected a number of tokens from 0")
    if args.report is not None:
        check_output(args.report, [text, mmproj, *args.image])
    with LINE.loading():
        model = options.load_model(args, text, mmproj)
    request = options.request(args, model)
    orders = {} if args.raw else {order: options.shown(args, model, order) for order in get_args(ImageOrder)}
    case = Case(text, mmproj, tuple(args.image), request.prompt.shown, orders)
    reference = _reference(args.against, model)
    note(f"running {reference.name}")
    answer = reference.run(case, n_greedy=args.max_tokens)
    note(f"running {_settings(model.settings)}")
    with LINE.open(model):
        report = conform(lambda changed: _with(args, model, changed), case, answer)
    if args.report is not None:
        from ..conformance.report.page import render

        paths = (text, mmproj, *args.image)
        page = signed(render(report, args.image), args.command, paths, model.facts()["runs"])
        write_text(args.report, page)
        note(f"{args.report}: written")
    if args.json:
        print_json(_as_json(report))
    else:
        _print(report, every=args.all)
    return 0 if report.same else 1


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


def _settings(settings: Mapping[str, Any]) -> str:
    return f"llava_ref {settings['backend']} {settings['precision']}, profile {settings['profile']}"


def verdict(report: "Conformance") -> list[str]:
    """Say the result in sentences: the first stage that exceeds its bound, and each finding."""
    what = f"{_settings(report.settings)} against {report.reference}"
    if not report.findings:
        lines = [f"{what}: no stage exceeds its bound, {report.n_compared} of {len(report.stages)} compared"]
        if not report.same:
            lines.append("  the outcome exceeds its own: the stages' roundings have added up")
        return lines
    lines = [f"{what}: {report.findings[0].stage} is the first stage that exceeds its bound"]
    for i, finding in enumerate(report.findings, 1):
        more = f" and {finding.n_stages - 1} after it" if finding.n_stages > 1 else ""
        lines.append(f"  {i}. {finding.stage}{more}: {finding.problem}")
        for change in finding.explained:
            names = [part.partition("=")[0] for part in change.split(" --quirk ")]
            lines.append(f"     vanishes with --quirk {change}: {', and '.join(QUIRKS[name].about for name in names)}")
        if not finding.explained:
            lines.append(f"     no known quirk explains it{f'; {finding.likeness}' if finding.likeness else ''}")
    return lines


def _outcome(report: "Conformance") -> list[str]:
    """Say in sentences how logits and tokens differ."""
    from ..conformance.report.words import worst

    o, lines = report.outcome, []
    if o.token_ids[0] != o.token_ids[1]:
        lines.append("token ids differ, so logits cannot be compared position by position")
    elif o.kl is None:
        lines.append("logits: the reference has none to compare")
    else:
        at = worst(o.kl)
        lines.append(
            f"logits: KL {sum(o.kl) / len(o.kl):.2g} nats a position, at most {o.kl[at]:.2g} (position {at}; "
            f"{o.kl_bound:g} allowed), the same likeliest token at {o.top_1:.1%}"
        )
    if o.greedy:
        agreed = len(o.greedy) - len(o.disagreements)
        lines.append(f"greedy tokens, fed the reference's: {agreed} of {len(o.greedy)} agree")
    for d in o.disagreements:
        ours, theirs = (f"{token} ({o.texts[token]})" for token in (d.ours, d.theirs))
        lines.append(f"  token {d.place}: ours {ours}, the reference's {theirs}, ahead by {d.margin:.3g} logits")
    return lines


def _print(report: "Conformance", *, every: bool) -> None:
    """Print the sentences, then the rows of stages."""
    first, *more = [*verdict(report), *_outcome(report)]
    print(coloured(visible(first), "green" if report.same else "red"))
    for line in more:
        print(visible(line))
    shown = set(range(len(report.stages))) if every else _around(report.stages)
    if not shown:
        print("--all prints the row of every stage")
        return
    width = max(len(stage.name) for stage in report.stages)
    print(f"\n{'stage':{width}}  {'own':>8}  {'whole':>8}  {'bound':>8}")
    left_out = 0
    for i, stage in enumerate(report.stages):
        if i in shown:
            _print_left_out(left_out)
            row = visible(_row(stage, width))
            print(coloured(row, "red") if stage.problem else row)
        left_out = 0 if i in shown else left_out + 1
    _print_left_out(left_out)
    print("own: local error, relative RMS, computed from the reference's inputs; whole: cumulative error, end to end")


def _around(stages: Sequence["StageResult"]) -> set[int]:
    """Return the places of the stages that exceed their bounds, of the stages beside them, and of those alone between
    two of these, as a row takes no more than the words for it."""
    bad = {i for i, stage in enumerate(stages) if stage.problem}
    near = {j for i in bad for j in (i - 1, i, i + 1)}
    near |= {-1, len(stages)} if bad else set()
    return {i for i in range(len(stages)) if i in near or {i - 1, i + 1} <= near}


def _print_left_out(n: int) -> None:
    if n:
        print(f"... {n} more stages, none over its bound (--all prints every row)")


def _row(stage: "StageResult", width: int) -> str:
    own, whole = (f"{d.rel_rms:8.1e}" if d else " " * 8 for d in (stage.own, stage.whole))
    at = f", first at {list(stage.own.first_bad)}" if stage.problem and stage.own and stage.own.first_bad else ""
    remark = (stage.problem or stage.remark or "") + ("" if stage.bad_number else at)
    return f"{stage.name:{width}}  {own}  {whole}  {stage.bound.limit:8.1e}  {remark}".rstrip()


def _as_json(report: "Conformance") -> Any:
    """Convert the report to plain data, without the table of stages, which is no result."""
    fields = asdict(report)
    del fields["table"]
    return {"same": report.same, "verdict": verdict(report)} | _finite(fields)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None: JSON has no number for them."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
