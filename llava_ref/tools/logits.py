"""`logits`: write the logits at every position of a prompt."""

import argparse
from collections.abc import Sequence

import numpy as np

from ..generation.sampling import Sampling
from . import options
from .output import check_output, note, print_json, write_tensors
from .parser import Example, Parser
from .recorded import add_record, check_record, recorded

EXAMPLES: Sequence[Example] = (
    ('llava-ref logits --raw -p "The sky is" -o sky.safetensors', "the shapes written, on standard error"),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_images(parser)
    options.add_prompt(parser)
    options.add_output(parser, "OUT.safetensors", "the file to write: logits and token_ids")
    options.add_text(parser)
    options.add_running(parser)
    add_record(parser)
    options.add_json(parser, "say what was written as JSON")


def run(args: argparse.Namespace) -> int:
    """Write `logits` (T, V) float32 and `token_ids` (T,) int64, -1 at a picture's positions."""
    text, mmproj = options.pair(args)
    check_output(args.output, [text, mmproj, *args.image])
    check_record(args, [text, mmproj], args.output)
    model = options.load_model(args, text, mmproj)
    request = options.request(args, model)
    with recorded(args, model, Sampling(), 0) as keep:
        logits = model.request_logits(request)
    keep(request, None)
    tensors = {"logits": logits, "token_ids": np.array(request.token_ids, np.int64)}
    files = {"model": text.name, "mmproj": mmproj.name if mmproj else "", "images": [p.name for p in args.image]}
    write_tensors(args.output, tensors, options.about(model, prompt=request.prompt.shown, **files))
    shapes = {name: list(x.shape) for name, x in tensors.items()}
    if args.json:
        print_json({"output": str(args.output), "tensors": shapes} | model.settings)
    else:
        note(f"{args.output}: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
    return 0
