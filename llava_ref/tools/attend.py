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
from ..study.attention import attended_layers, attention_to_picture, heads_to_picture
from ..study.overlay import LOST, SHARE, in_a_row, over_tiles, panel, pixels, to_source
from ..study.page import Attended, attend_page
from . import options
from .output import check_output, note, print_json, write_bytes, write_text
from .parser import Example, Parser

EXAMPLES: Sequence[Example] = (
    (
        'llava-ref attend --image cat.jpg -p "What is this?" -o attend.html',
        "the answer and the page's size, on standard error; on the page choose token, layer, head",
    ),
    (
        'llava-ref attend --image cat.jpg -p "What is this?" --layer 2 --head 1 -o head.png',
        "a picture: where one head of one layer looked",
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
    group.add_argument("--layer", type=int, metavar="L", help="layer to map, from 0 (default: the mean of all)")
    group.add_argument("--head", type=int, metavar="H", help="head of that layer, from 0 (default: the mean of all)")
    group.add_argument("--cells", type=int, metavar="N", help="steps along a side (default: at most 8)")
    group.add_argument("--window", type=int, default=3, metavar="N", help="steps covered at once (default: 3)")
    options.add_output(parser, "OUT.html|OUT.png", "the page or picture to write")
    options.add_text(parser)
    options.add_running(parser)
    options.add_json(parser, "print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Write a page, on which token, layer and head can be chosen, or a PNG of the mean over all tokens."""
    text, mmproj = options.pair(args)
    if args.output.suffix.lower() not in (".html", ".png"):
        raise ParameterError(str(args.output), "output", "expected a name that ends with .html or .png")
    if not 1 <= args.which <= len(args.image):
        raise ParameterError("--which", str(args.which), f"{len(args.image)} pictures were given with --image")
    if args.head is not None and args.layer is None:
        raise ParameterError("--head", str(args.head), "expected --layer too, whose head it is")
    check_output(args.output, [text, mmproj, *args.image])
    model = options.load_model(args, text, mmproj)
    check_head(model, args.layer, args.head)
    asked = {name: getattr(args, name) for name in ("max_tokens", "cells", "window", "layer", "head")}
    attended = attend(model, options.request(args, model), image=args.which - 1, **asked)
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


def check_head(model: Llava, layer: int | None, head: int | None) -> None:
    """Check that the model has this layer and head. Raises ParameterError."""
    layers, n = attended_layers(model), model.text.config.n_head
    if layer is not None and layer not in layers:
        raise ParameterError("--layer", str(layer), f"expected one of {', '.join(map(str, layers))}")
    if head is not None and not 0 <= head < n:
        raise ParameterError("--head", str(head), f"expected 0 to {n - 1}")


def attend(
    model: Llava,
    request: Request,
    *,
    max_tokens: int,
    image: int = 0,
    cells: int | None = None,
    window: int = 3,
    layer: int | None = None,
    head: int | None = None,
) -> Attended:
    """Generate an answer and compute both maps for each of its tokens, without the token that ends the answer."""
    reply = model.answer(request, Sampling(), max_tokens=max_tokens).finish()
    answer = [token for token in reply.token_ids if token not in model.tokenizer.end_ids]
    if not answer:
        raise ParameterError("--prompt", "answer", "is empty, so it has no tokens to map")
    weights, layers = attention_to_picture(model, request, answer, image=image), attended_layers(model)
    kept = layers[int(weights.sum((1, 2)).argmax())] if layer is None else layer
    heads = heads_to_picture(model, request, answer, kept, image=image)
    note(f"answer: {reply.text.strip()}; scoring it with each part of the picture covered")
    lost = ablation(model, request, answer, image=image, cells=cells, window=window)
    return Attended(
        picture=model.preprocess(request.images[image]),
        rgb=request.images[image].rgb,
        prompt=request.prompt.shown,
        answer=reply.text,
        pieces=tuple(model.tokenizer.piece(token) for token in answer),
        layers=layers,
        attention=weights,
        layer=kept,
        heads=heads,
        lost=lost,
        settings=model.settings,
        chosen=layer,
        head=head,
    )


def picture(attended: Attended) -> bytes:
    """Draw the picture and both maps of the whole answer side by side; return a PNG."""
    weights, of = attended.whole()
    attention = over_tiles(weights, attended.picture, *pixels(attended.picture))
    lost = to_source(attended.lost.sum(0), attended.picture)
    maps = [
        panel(attended.rgb, "the picture", None, SHARE),
        panel(attended.rgb, f"attention: {of}", attention, SHARE),
        panel(attended.rgb, "log-probability lost with each part covered", lost, LOST),
    ]
    buffer = io.BytesIO()
    in_a_row(maps).save(buffer, "PNG")
    return buffer.getvalue()
