"""`lens`: write a page with the tokens that the model would predict after each layer, at every position."""

import argparse
import json
from collections.abc import Sequence

from ..errors import ParameterError
from ..generation.request import Request
from ..generation.sampling import Sampling
from ..html import signed
from ..model import Llava
from ..study.attention import picture_positions
from ..study.lens import logit_lens
from ..study.page import Lensed, LensPicture, lens_page
from . import options
from .output import check_output, note, print_json, write_text
from .parser import Example, Parser

EXAMPLES: Sequence[Example] = (
    (
        'llava-ref lens --image cat.jpg -p "What is this?" -o lens.html',
        "how many layers and positions the page has, on standard error",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_images(parser)
    options.add_prompt(parser)
    options.add_max_tokens(parser, 24, "tokens of the answer, at most (default: 24)")
    parser.group("measurement").add_argument(
        "--top", type=int, default=5, metavar="K", help="tokens kept at each position (default: 5)"
    )
    options.add_output(parser, "OUT.html", "the page to write")
    options.add_text(parser)
    options.add_running(parser)
    options.add_json(parser, "print the lens as JSON")


def run(args: argparse.Namespace) -> int:
    text, mmproj = options.pair(args)
    if not 1 <= args.top <= 100:
        raise ParameterError("--top", str(args.top), "expected 1 to 100")
    check_output(args.output, [text, mmproj, *args.image])
    model = options.load_model(args, text, mmproj)
    lensed = look(model, options.request(args, model), args.max_tokens, args.top)
    paths = (text, mmproj, *args.image)
    write_text(args.output, signed(lens_page(lensed), args.command, paths, model.facts()["runs"]))
    if args.json:
        lens = lensed.lens
        kept = {"tokens": lens.tokens.tolist(), "probabilities": lens.probabilities.astype(float).tolist()}
        names = {str(token): name for token, name in lensed.names.items()}
        print_json({"layers": lens.layers, "token_ids": lens.token_ids, **kept, "names": names})
    else:
        note(f"{args.output}: {len(lensed.lens.layers)} layers, {len(lensed.lens.token_ids)} positions")
    return 0


def look(model: Llava, request: Request, max_tokens: int, top: int) -> Lensed:
    """Generate an answer and compute the lens over prompt and answer."""
    reply = model.answer(request, Sampling(), max_tokens=max_tokens).finish()
    lens = logit_lens(model, request, reply.token_ids, top=min(top, model.text.config.n_vocab))
    shown = {int(token) for token in lens.tokens.ravel()} | {token for token in lens.token_ids if token >= 0}
    pictures = tuple(
        LensPicture(model.preprocess(image), image.rgb, picture_positions(request, i))
        for i, (image, span) in enumerate(zip(request.images, request.spans, strict=True))
        if span.n_seen is None  # else it has no rows in the sequence
    )
    return Lensed(
        lens=lens,
        names={token: _name(model, token) for token in sorted(shown)},
        n_prompt=len(request.token_ids),
        pictures=pictures,
        prompt=request.prompt.shown,
        answer=reply.text,
        settings=model.settings,
    )


def _name(model: Llava, token: int) -> str:
    """Return a token's text, as a JSON string if it is blank or not printable."""
    text = model.tokenizer.piece(token)
    return text if text.strip() and text.isprintable() else json.dumps(text)
