"""`generate`: answer one prompt."""

import argparse
import sys
from collections import deque
from collections.abc import Sequence

from ..errors import visible
from ..generation.request import Request
from ..model import Llava
from . import options
from .output import note, print_json, print_pieces, summary
from .parser import Example, Parser
from .progress import LINE
from .recorded import add_record, check_record, recorded

EXAMPLES: Sequence[Example] = (
    (
        'llava-ref generate --image cat.jpg -p "What is this?"',
        "the answer as it comes; then a line of timings on standard error",
    ),
    (
        'llava-ref generate -m text.gguf -p "Name a colour." -n 8 --json',
        "one JSON object: text, token ids, usage, timings, settings",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_images(parser)
    options.add_prompt(parser)
    options.add_sampling(parser)
    options.add_text(parser)
    options.add_running(parser)
    parser.group("output").add_argument(
        "--show-prompt", action="store_true", help="print the prompt as the model gets it on standard error"
    )
    add_record(parser)
    options.add_json(parser, "print one JSON object with the answer and its timings")


def run(args: argparse.Namespace) -> int:
    sampling, pair = options.sampling(args).seeded(), options.pair(args)
    check_record(args, pair)
    with LINE.loading():
        model = options.load_model(args, *pair)
    request = options.request(args, model)
    stream = model.answer(request, sampling, max_tokens=args.max_tokens, stop=args.stop)
    for warning in stream.reply.warnings:
        note(f"warning: {visible(warning)}")
    if args.show_prompt:
        _show(model, request, raw=args.raw)
    with LINE.open(model, request=request), recorded(args, model, sampling, args.max_tokens, args.stop) as keep:
        if args.json:
            deque(LINE.counted(stream), maxlen=0)
        else:
            print_pieces(stream if sys.stdout.isatty() else LINE.counted(stream))
    reply = stream.reply
    keep(request, reply)
    if args.json:
        fields = ("text", "token_ids", "prompt", "chunks", "finish_reason", "usage", "timings", "warnings")
        print_json({name: getattr(reply, name) for name in fields} | model.settings)
    else:
        note(summary(reply))
    if reply.usage["total_tokens"] == model.n_context:
        note(f"note: the answer ended with the context of {model.n_context} positions")
    return 0


def _show(model: Llava, request: Request, *, raw: bool) -> None:
    """Write the template, the prompt and its chunks on standard error."""
    template = model.template
    note("template: none (--raw)" if raw else f"template: {template.name} ({visible(template.why)})")
    if request.prompt.images and not raw:
        note(f"pictures: {model.quirks.image_order} (quirk image_order)")
    note(f"prompt:\n{visible(request.prompt.shown)}\nchunks:")
    for chunk in request.describe():
        if chunk["type"] == "text":
            note(f"  text   {len(chunk['token_ids']):5} tokens     {chunk['token_ids']}")
        else:
            note(f"  image  {chunk['n_tokens']:5} positions  {chunk['width']} x {chunk['height']} pixels")
    note(f"  in all {len(request.token_ids):5} of {model.n_context} positions")
