"""`attend`: show where an answer looked in a picture, and how much it depends on each part, as a page or a PNG."""

import argparse
import io
from collections.abc import Sequence

from ..errors import ParameterError
from ..generation.request import Request
from ..generation.sampling import Sampling
from ..html import signed
from ..model import Llava
from ..study.ablation import ablation
from ..study.attention import attention_to_picture
from ..study.overlay import in_a_row, over_tiles, panel, pixels, to_source
from ..study.page import LEAST_ATTENTION, LEAST_LOST, Attended, attend_page
from . import options
from .output import check_output, note, print_json, write_bytes, write_text
from .parser import Example, Parser

EXAMPLES: Sequence[Example] = (
    (
        'llava-ref attend --image cat.jpg -p "What is this?" -o attend.html',
        "the answer and the page's size, on standard error; on the page choose token, layer, head",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_images(parser)
    options.add_prompt(parser)
    options.add_max_tokens(parser, 24, "tokens of the answer, at most (default: 24)")
    group = parser.group("measurement")
    group.add_argument("--which", type=int, default=1, metavar="K", help="number of the picture to map (default: 1)")
    group.add_argument("--cells", type=int, metavar="N", help="steps along a side (default: at most 8)")
    group.add_argument("--window", type=int, default=3, metavar="N", help="steps covered at once (default: 3)")
    options.add_output(parser, "OUT.html|OUT.png", "the page or picture to write")
    options.add_text(parser)
    options.add_running(parser)
    options.add_json(parser, "print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Write a page, on which token and layer can be chosen, or a PNG of the mean over all tokens and layers."""
    text, mmproj = options.pair(args)
    if args.output.suffix.lower() not in (".html", ".png"):
        raise ParameterError(str(args.output), "output", "expected a name that ends with .html or .png")
    if not 1 <= args.which <= len(args.image):
        raise ParameterError("--which", str(args.which), f"{len(args.image)} pictures were given with --image")
    check_output(args.output, [text, mmproj, *args.image])
    model = options.load_model(args, text, mmproj)
    attended = attend(model, options.request(args, model), args.max_tokens, args.which - 1, args.cells, args.window)
    if args.output.suffix.lower() == ".html":
        paths = (text, mmproj, *args.image)
        write_text(args.output, signed(attend_page(attended), args.command, paths, model.facts()["runs"]))
    else:
        write_bytes(args.output, picture(attended))
    if args.json:
        print_json({"output": str(args.output), **attended.as_json()})
    else:
        note(f"{args.output}: {len(attended.pieces)} tokens, {len(attended.attention)} layers")
    return 0


def attend(model: Llava, request: Request, max_tokens: int, image: int, cells: int | None, window: int) -> Attended:
    """Generate an answer and compute both maps for each of its tokens, without the token that ends the answer."""
    reply = model.answer(request, Sampling(), max_tokens=max_tokens).finish()
    answer = [token for token in reply.token_ids if token not in model.tokenizer.end_ids]
    if not answer:
        raise ParameterError("--prompt", "answer", "is empty, so it has no tokens to map")
    weights = attention_to_picture(model, request, answer, image=image)
    note(f"answer: {reply.text.strip()}; scoring it with each part of the picture covered")
    lost = ablation(model, request, answer, image=image, cells=cells, window=window)
    return Attended(
        picture=model.preprocess(request.images[image]),
        rgb=request.images[image].rgb,
        prompt=request.prompt.shown,
        answer=reply.text,
        pieces=tuple(model.tokenizer.piece(token) for token in answer),
        attention=weights,
        lost=lost,
        settings=model.settings,
    )


def picture(attended: Attended) -> bytes:
    """Draw both maps of the whole answer side by side; return a PNG."""
    attention = over_tiles(attended.attention.mean((0, 1)), attended.picture, *pixels(attended.picture))
    lost = to_source(attended.lost.sum(0), attended.picture)
    maps = [
        panel(attended.rgb, attention, "attention, mean over heads, layers and tokens", "of 1", LEAST_ATTENTION),
        panel(attended.rgb, lost, "log-probability lost with each part covered", "nats", LEAST_LOST),
    ]
    buffer = io.BytesIO()
    in_a_row(maps).save(buffer, "PNG")
    return buffer.getvalue()
