"""`headroom`: report the largest number of every stage, and how far it is from float16's largest."""

import argparse
import math
from collections.abc import Sequence

from ..tracing.finite import FLOAT16, Magnitude, Magnitudes
from . import options
from .output import coloured, print_json
from .parser import Example, Parser
from .progress import LINE

EXAMPLES: Sequence[Example] = (
    (
        'llava-ref headroom --image cat.jpg -p "What is this?"',
        "a row for each stage: its largest number, how many times larger it could be in float16, and where it stands",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_images(parser)
    options.add_prompt(parser)
    options.add_text(parser)
    options.add_running(parser)
    options.add_json(parser, "print one JSON object: for each stage the largest number, its place and the headroom")


def run(args: argparse.Namespace) -> int:
    """Run a prompt and its pictures once, and print what every stage holds."""
    model = options.load_model(args, *options.pair(args))
    request = options.request(args, model)
    probe = Magnitudes(model.ops)
    with model.probed(probe), LINE.open(model, request=request):
        model.request_logits(request)
    if args.json:
        print_json(
            {"float16": FLOAT16, "stages": {k: _as_json(row) for k, row in probe.stages.items()}} | model.settings
        )
    else:
        _print(probe.stages)
    return 0


def _as_json(row: Magnitude) -> dict[str, object]:
    """Return the row as plain data; JSON has no infinity."""
    finite = math.isfinite(row.largest)
    headroom = row.headroom if math.isfinite(row.headroom) else None
    return {"largest": row.largest if finite else None, "place": row.place, "headroom": headroom}


def _print(stages: dict[str, Magnitude]) -> None:
    width = max(map(len, stages))
    print(f"{'stage':{width}}     largest  headroom  where")
    for name, row in stages.items():
        line = f"{name:{width}}  {row.largest:10.4g}  {row.headroom:8.3g}  {row.place}"
        print(coloured(f"{line}: over float16's {FLOAT16:,.0f}", "red") if row.headroom < 1 else line)
    name, row = min(stages.items(), key=lambda item: item[1].headroom)
    print(f"least headroom: {name}, {row.headroom:.3g} times below float16's largest, {FLOAT16:,.0f}")
