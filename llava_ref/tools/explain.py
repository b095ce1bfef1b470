"""`explain`: tell one run step by step: shapes, time, memory, keys and tensors of the files, lines of the code."""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import visible
from ..html import columns, environment, signed
from ..study.walkthrough import Computed, Phase, walk
from . import options
from .output import check_output, note, print_json, write_text
from .parser import Example, Parser

EXAMPLES: Sequence[Example] = (
    (
        'llava-ref explain --image cat.jpg -p "What is this?"',
        "each phase of the run, and in it each array: its shape, time, stored matrix, and the line that computes it",
    ),
    ('llava-ref explain --image cat.jpg -p "What is this?" -o run.html', "the same, and a page with every block"),
)
BLOCK = re.compile(r"(.*?blk\.)(\d+)(\..+)")


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_images(parser)
    options.add_prompt(parser)
    options.add_max_tokens(parser, 16, "tokens of the answer, at most (default: 16)")
    options.add_text(parser)
    options.add_running(parser)
    group = parser.group("output")
    group.add_argument("--all", action="store_true", help="show every block, not the first alone")
    group.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="write a page with every block")
    options.add_json(parser, "print one JSON object: phases, and in each its arrays")


def run(args: argparse.Namespace) -> int:
    text, mmproj = options.pair(args)
    paths = (text, mmproj, *args.image)
    if args.output is not None:
        check_output(args.output, paths)
    model = options.load_model(args, text, mmproj)
    phases = walk(model, lambda: options.request(args, model), args.max_tokens)
    if args.output is not None:
        write_text(args.output, signed(page(phases), args.command, paths, model.facts()["runs"]))
        note(f"{args.output}: written")
    if args.json:
        print_json({"phases": [_as_json(phase) for phase in phases]} | model.settings)
    else:
        print("\n\n".join("\n".join(_told(phase, args.all)) for phase in phases))
    return 0


def page(phases: Sequence[Phase]) -> str:
    """Return a run as a page: each phase with its share of the time, its facts, and all of its arrays."""
    template = environment(ms=_ms, mb=lambda megabytes: f"{megabytes:,.0f} MB").get_template("explain.html.jinja")
    first = next((i for i, phase in enumerate(phases) if phase.arrays), None)
    return template.render(phases=phases, longest=max(phase.seconds for phase in phases) or 1.0, opened=first)


def _as_json(phase: Phase) -> dict[str, object]:
    return asdict(phase) | {"arrays": [asdict(array) for array in phase.arrays.values()]}


def _told(phase: Phase, every: bool) -> Iterator[str]:
    """Yield the lines of one phase: its name, time and memory, its facts, and a row for each array."""
    held = "" if phase.resident_mb is None else f", {phase.resident_mb:,.0f} MB held behind it"
    yield f"{phase.name}: {_ms(phase.seconds)}{held}, {phase.line}"
    for key, fact in phase.facts.items():
        yield f"  {key}: {visible(fact)}"
    arrays = phase.arrays.values()
    if rows := [_row(array) for array in (arrays if every else _first_blocks(arrays))]:
        yield columns([(f"  {first}", *rest) for first, *rest in rows])


def _row(array: Computed) -> tuple[str, str, str, str, str]:
    shape = " x ".join(map(str, array.shape))
    return array.stage, shape, _ms(array.seconds).rjust(10), array.tensor or "", array.line


def _first_blocks(arrays: Iterable[Computed]) -> Iterator[Computed]:
    """Yield the arrays of a network's first block, and those of the others as one row."""
    others: dict[str, list[Computed]] = {}
    for array in arrays:
        found = BLOCK.fullmatch(array.stage)
        if found is None or found[2] == "0":
            yield from _together(others)
            yield array
        else:
            others.setdefault(found[1], []).append(array)
    yield from _together(others)


def _together(others: dict[str, list[Computed]]) -> Iterator[Computed]:
    """Yield a row for the blocks that were left out, and forget them."""
    for prefix, found in others.items():
        numbers = [BLOCK.fullmatch(array.stage)[2] for array in (found[0], found[-1])]  # type: ignore[index]
        seconds, last = sum(array.seconds for array in found), found[-1]
        name = f"{prefix}{numbers[0]}" if numbers[0] == numbers[1] else f"{prefix}{numbers[0]} to {numbers[1]}"
        yield Computed(f"{name}: the same", last.shape, seconds, f"{len(found)} arrays", last.line)
    others.clear()


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
