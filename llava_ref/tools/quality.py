"""`quality`: measure what quantisation costs a pair of files, and which tensors deserve more bits."""

import argparse
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from .. import gguf
from ..errors import ParameterError, visible
from ..html import signed
from ..loading import embedded
from ..model import Llava
from ..ops.weight_budget import default_budget
from ..quality import cases, comparison, ranking, siblings, tensors
from ..quality import page as quality_page
from ..quality import words as quality_words
from ..quality.cases import QualityCase
from ..quality.comparison import Comparison
from ..quality.report import QualityReport, as_json, same_answer, sizes
from ..quality.siblings import FilePair
from . import options
from .cases import add_cases, cases_file, read_cases
from .output import check_output, note, print_json, verdict, write_text
from .parser import Example, Parser
from .progress import LINE

Question = tuple[str, Path | None]


EXAMPLES: Sequence[Example] = (
    (
        "llava-ref quality -m q4.gguf --against-model f16.gguf --report quality.html",
        "what the bits cost, in sentences and a ranking; the page has plots",
    ),
    (
        "llava-ref quality --rank none --image cat.jpg",
        "the same for the embedded pair, with ggml's rounding and without it",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    group = parser.group("files")
    group.add_argument("--against-model", type=Path, metavar="TEXT16.gguf", help="the text model with more bits")
    group.add_argument("--against-mmproj", type=Path, metavar="MMPROJ16.gguf", help="the mmproj file with more bits")
    options.add_images(parser)
    parser.group("question").add_argument(
        "-p", "--prompt", action="append", default=[], metavar="TEXT", help="asked about every picture; repeatable"
    )
    add_cases(parser)
    options.add_max_tokens(parser, 64, "tokens of each answer, at most (default: 64)")
    group = parser.group("measurement")
    group.add_argument(
        "--rank",
        choices=("tensors", "layers", "none"),
        default="tensors",
        help="what to rank by need of more bits; each takes one run through all pictures (default: tensors)",
    )
    group.add_argument(
        "--swap", action="append", default=[], metavar="GLOB", help="rank only tensors of this name; repeatable"
    )
    options.add_output(parser, "FILE.html", "everything, as one page with plots", "--report")
    options.add_text(parser)
    options.add_running(parser)
    parser.set_defaults(precision=None)
    options.add_json(parser, "everything, as JSON")


def run(args: argparse.Namespace) -> int:
    """Return 0 after the measurement: a large loss is a result, not a failure."""
    ours, theirs = _paths(args)
    if args.report is not None:
        check_output(args.report, [*ours, *theirs, *args.image, cases_file(args)])
    with LINE.open():
        report = measure(args, ours, theirs)
    if args.report is not None:
        paths = dict.fromkeys((*ours, *theirs, *args.image, cases_file(args)))
        runs = f"{args.backend} on {args.device}, precision {report.precision}; profile {args.profile}"
        write_text(args.report, signed(quality_page.render(report), args.command, paths, runs))
        note(f"{args.report}: written")
    if args.json:
        print_json({"verdict": quality_words.verdict(report), "precision": report.precision} | as_json(report))
    else:
        _print(report)
    return 0


def _print(report: QualityReport) -> None:
    """Print the tables, then the main result, coloured where answers could change, and all results in sentences."""
    answers = [same_answer(d) for d in report.behaviour.differences if d.in_answer.any()]
    head = visible(quality_words.headline(report))
    for line in quality_words.lines(report):
        print(visible(line))
    print(verdict(head, all(answers)) if answers else head)
    for line in quality_words.verdict(report):
        print(visible(f"  {line}"))


Paths = tuple[Path | None, Path | None]


def _paths(args: argparse.Namespace) -> tuple[Paths, Paths]:
    """Return the text model and mmproj file of the pair and of its reference.

    The embedded pair is the default, and a file without a sibling is its own reference. Without any sibling the
    default precision is `ggml`, as there would be nothing to measure in `exact`. Raises ParameterError."""
    ours: Paths = (args.model, args.mmproj) if args.model or args.mmproj else embedded()
    for path, sibling, name in (
        (ours[0], args.against_model, "model"),
        (ours[1], args.against_mmproj, "mmproj"),
    ):
        if sibling is not None and path is None:
            raise ParameterError(f"--against-{name}", str(sibling), f"expected --{name} too, whose sibling it is")
    alone = args.against_model is None and args.against_mmproj is None
    if args.precision is None:
        args.precision = "ggml" if alone else "exact"
    if alone and args.precision == "exact":
        raise ParameterError(
            "--precision", "exact", "a pair does not differ from itself, expected ggml, or a sibling to compare with"
        )
    return ours, (args.against_model or ours[0], args.against_mmproj or ours[1])


def measure(args: argparse.Namespace, ours: Paths, theirs: Paths) -> QualityReport:
    """Run all measurements, with progress on the terminal."""
    quantised, reference = _open(ours), _open(theirs)
    siblings.check(quantised, reference)
    names = _swapped(args, siblings.changed(quantised, reference))
    if args.weight_cache is None:  # half of the free memory for both pairs together, not for each
        files = [file for pair in (quantised, reference) for file in (pair.text, pair.mmproj) if file is not None]
        args.weight_cache = default_budget(files, args.device) / options.GIB
    LINE.step("loading the models")
    model = LINE.watch(options.load_model(options.changed(args, precision="exact"), *theirs))
    c = Comparison(model, quantised, args.precision, args.threads, int(args.weight_cache * options.GIB))
    progress = LINE.step
    progress("asking the reference")
    asked = _cases(args, model, progress)
    measured = comparison.behaviour(c, asked, progress)
    order = _rank(args, c, asked, measured, names, progress)
    return QualityReport(
        files=sizes(quantised, reference),
        precision=args.precision,
        tensors=tuple(tensors.compare(quantised, reference)),
        behaviour=measured,
        cases=tuple(asked),
        ranking=tuple(order),
        raised=tuple(ranking.raised(c, asked, measured.wanted, order, progress)),
    )


def _open(paths: Paths) -> FilePair:
    return FilePair(*(None if path is None else gguf.read(path) for path in paths))


def _swapped(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Select the tensors to rank among those that differ. Raises ParameterError for a pattern that matches none."""
    for glob in args.swap:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ParameterError("--swap", repr(glob), f"matches none of the {len(names)} tensors that differ")
    return [name for name in names if not args.swap or any(fnmatchcase(name, glob) for glob in args.swap)]


def _rank(
    args: argparse.Namespace,
    c: Comparison,
    asked: Sequence[QualityCase],
    measured: comparison.Behaviour,
    names: Sequence[str],
    progress: comparison.Progress,
) -> list[ranking.Ranked]:
    if args.rank == "none" or c.quantised.text is None:  # without a text model there is no KL to rank by
        return []
    return ranking.rank(c, asked, measured.wanted, ranking.groups(names, args.rank == "layers"), progress)


def _cases(args: argparse.Namespace, model: Llava, progress: comparison.Progress) -> list[QualityCase]:
    """Ask the reference every question about every picture, or the cases. Raises ParameterError if there are none."""
    if args.cases is not None:
        return _asked_cases(args, model, progress)
    questions = _questions(args, model)
    answered = []
    for done, (text, path) in enumerate(questions, 1):
        label = "" if path is None else path.name
        if not model.has_text:
            assert path is not None
            answered.append(cases.look(model, label, path))
            continue
        message = options.user_message(options.checked_text("--prompt", text), [] if path is None else [path])
        answered.append(cases.ask(model, label, text, model.request([message]), args.max_tokens))
        progress(f"{done} of {len(questions)} answers of the reference")
    return answered


def _asked_cases(args: argparse.Namespace, model: Llava, progress: comparison.Progress) -> list[QualityCase]:
    """Ask the reference the chats of --cases."""
    found, answered = read_cases(args), []
    if not model.has_text:
        raise ParameterError("--cases", str(args.cases), "expected a text model, which is asked")
    for done, case in enumerate(found, 1):
        request = model.request(case.messages)
        answered.append(cases.ask(model, case.name, case.question, request, args.max_tokens))
        progress(f"{done} of {len(found)} answers of the reference")
    return answered


def _questions(args: argparse.Namespace, model: Llava) -> list[Question]:
    """Pair questions with pictures. The embedded pictures have questions of their own."""
    if not model.has_tower:
        if args.image:
            raise ParameterError("--image", str(args.image[0]), "expected --mmproj too, the tower for pictures")
        if not args.prompt:
            raise ParameterError("--prompt", "missing", "expected for a text model alone")
        return [(prompt, None) for prompt in args.prompt]
    if args.image:
        return [(prompt, path) for path in args.image for prompt in args.prompt or ["Describe the picture."]]
    folder = embedded()[0].parent / "pictures"
    entries = json.loads((folder / "pictures.json").read_text())
    return [(prompt, folder / entry["file"]) for entry in entries for prompt in args.prompt or [entry["question"]]]
