"""`trace`: write the intermediate arrays of a run, by name, to a file; or list the names."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ParameterError
from ..generation.sampling import Sampling
from ..html import columns
from ..model import Llava
from ..models.stages import Stage
from ..tracing.tracefile import Writer, hashes
from . import options
from .output import check_output, note, print_json
from .parser import Example, Parser
from .recorded import add_record, check_record, recorded

EXAMPLES: Sequence[Example] = (
    (
        'llava-ref trace --image cat.jpg -p "What is this?" --names "vision.*" -o run.safetensors',
        "how many arrays were written, on standard error",
    ),
    ("llava-ref trace --list", "the name and shape of every array, and its name in llama.cpp and transformers"),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_images(parser)
    options.add_prompt(parser, required=False)
    options.add_max_tokens(parser, 0, "tokens to generate (default: 0)")
    parser.group("measurement").add_argument(
        "--names",
        action="append",
        default=[],
        metavar="GLOB",
        help="stages to write, as in 'vision.*'; repeatable (default: all but the attention weights, '*kq_soft_max')",
    )
    parser.group("output").add_argument(
        "-o", "--output", type=Path, metavar="OUT.safetensors", help="the file to write"
    )
    parser.group("output").add_argument("--list", action="store_true", help="print the stages, and stop")
    options.add_text(parser)
    options.add_running(parser)
    add_record(parser)
    options.add_json(parser, "print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Write every stage asked for, and `token_ids` (T,) int64, -1 at a picture's positions."""
    text, mmproj = options.pair(args)
    if args.list:
        return _list(options.load_model(args, text, mmproj), args.json)
    for name in ("prompt", "output"):
        if getattr(args, name) is None:
            raise ParameterError(f"--{name}", "missing", "expected, unless --list is given")
    if args.max_tokens < 0:
        raise ParameterError("--max-tokens", str(args.max_tokens), "expected a number of tokens from 0")
    check_output(args.output, [text, mmproj, *args.image])
    check_record(args, [text, mmproj], args.output)
    model = options.load_model(args, text, mmproj)
    with Writer(args.output) as writer:
        facts = _record(args, model, writer)
        facts |= {"files": hashes(path for path in (text, mmproj, *args.image) if path is not None)}
        shapes = writer.finish(options.about(model, format="llava_ref trace 1", names=args.names or ["*"], **facts))
    if args.json:
        print_json({"output": str(args.output), "tensors": shapes, **facts} | model.settings)
    else:
        note(f"{args.output}: {len(shapes)} tensors, {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


def _record(args: argparse.Namespace, model: Llava, writer: Writer) -> dict[str, Any]:
    request, reply = options.request(args, model), None
    with model.trace(*args.names, sink=writer), recorded(args, model, Sampling(), args.max_tokens) as keep:
        if args.max_tokens:
            reply = model.answer(request, Sampling(), max_tokens=args.max_tokens).finish()
        else:
            model.request_logits(request)
    keep(request, reply)
    generated = () if reply is None else reply.token_ids
    writer.add("token_ids", np.array([*request.token_ids, *generated[:-1]], np.int64))  # the last token was not fed
    return {"prompt": request.prompt.shown, "generated": list(generated), "types": model.types()}


def _list(model: Llava, as_json: bool) -> int:
    stages = model.stage_table()
    if as_json:
        print_json([{key: getattr(stage, key) for key in Stage.__slots__} for stage in stages])
        return 0
    rows = [("stage", "shape", "llama.cpp", "transformers")]
    rows += [(stage.name, stage.shape, stage.llama_cpp, stage.transformers) for stage in stages]
    print(columns(rows))
    return 0
