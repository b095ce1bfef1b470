"""`patch`: put parts of one run into another, block by block, to see which carry the difference of the answers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ParameterError
from ..generation.request import Request
from ..html import signed
from ..images.fit import Preprocessed
from ..model import Llava
from ..models.stages import residual
from ..study.ablation import rows_under, window_of_patches
from ..study.attention import picture_positions
from ..study.page import Patched, patch_page
from ..study.patching import sweep
from . import options
from .output import check_output, note, print_json, write_text
from .parser import Example, Parser

MOST_STAGES = 9


EXAMPLES: Sequence[Example] = (
    (
        'llava-ref patch --image black.png --from-image purple.png -p "What colour is the star?" -o patch.html',
        "the first token of each run's answer, on standard error",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_images(parser)
    group = parser.group("files")
    group.add_argument("--from-image", type=Path, metavar="FILE", help="picture of the source run")
    options.add_prompt(parser)
    group = parser.group("question")
    group.add_argument("--from-prompt", metavar="TEXT", help="its prompt, with as many tokens (default: the same)")
    parser.group("measurement").add_argument(
        "--cells", type=int, default=4, metavar="N", help="parts of the picture per side (default: 4)"
    )
    options.add_output(parser, "OUT.html", "the page to write")
    options.add_text(parser)
    options.add_running(parser)
    options.add_json(parser, "print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Patch the run of --image and -p with parts of the run of --from-image and --from-prompt; write the page."""
    text, mmproj = options.pair(args)
    if len(args.image) != 1:
        raise ParameterError("--image", f"{len(args.image)} given", "expected one picture")
    if args.from_image is None and args.from_prompt is None:
        raise ParameterError("--from-image", "missing", "expected another picture, or --from-prompt")
    check_output(args.output, [text, mmproj, *args.image, args.from_image])
    model = options.load_model(args, text, mmproj)
    into = options.request(args, model)
    images, prompt = [args.from_image or args.image[0]], args.from_prompt or args.prompt
    source = options.request(options.changed(args, image=images, prompt=prompt), model)
    patched = patch(model, into, source, args.cells)
    paths = (text, mmproj, *args.image, args.from_image)
    write_text(args.output, signed(patch_page(patched), args.command, paths, model.facts()["runs"]))
    if args.json:
        print_json({"output": str(args.output), **patched.as_json()})
    else:
        note(f"{args.output}: {patched.names[0]!r} from the source, {patched.names[1]!r} without it")
    return 0


def patch(model: Llava, into: Request, source: Request, cells: int) -> Patched:
    """Patch the cells of the picture, the text before the last position, and the last position at every stage."""
    grid = into.spans[0].grid
    if into.spans[0].n_seen is not None:
        problem = "stands at one token of this model's sequence, which has no rows of it to put in"
        raise ParameterError("patch", "picture", problem)
    if not 1 <= cells <= min(grid):
        raise ParameterError("--cells", str(cells), f"expected 1 to {min(grid)}, the patches along a side")
    ours, theirs = (int(model.request_logits(request)[-1].argmax()) for request in (into, source))
    if ours == theirs:
        token = name(model, ours)
        raise ParameterError(
            "--from-image", "answer", f"begins with {token!r} in both runs, so there is no difference to trace"
        )
    stages = stages_of(model)
    pictures = tuple(model.preprocess(request.images[0]) for request in (source, into))
    parts = groups(into, pictures[1], grid, cells)
    effects = sweep(model, into, source, parts, (theirs, ours), stages=stages, progress=note)
    return Patched(
        pictures=pictures,
        rgbs=tuple(request.images[0].rgb for request in (source, into)),
        prompts=(source.prompt.shown, into.prompt.shown),
        names=(name(model, theirs), name(model, ours)),
        stages=tuple(stages),
        effects=effects,
        cells=cells,
        settings=model.settings,
    )


def groups(request: Request, prepared: Preprocessed, grid: tuple[int, int], cells: int) -> dict[str, Sequence[int]]:
    """Group a prompt's positions: each cell of the picture, the text, the last position."""
    picture, last = picture_positions(request), len(request.token_ids) - 1
    positions: dict[str, Sequence[int]] = {}
    for y, x in np.ndindex(cells, cells):
        rows = rows_under(window_of_patches(grid, cells, (y, x), 1), prepared)
        positions[f"{y},{x}"] = [picture[row] for row in rows]
    positions["text"] = [at for at in range(last) if at not in picture]
    positions["last"] = [last]
    return positions


def stages_of(model: Llava) -> list[str]:
    """Return the input and the blocks of a decoder, at most MOST_STAGES of them."""
    n = model.text.config.n_layer
    chosen = sorted({round(i) for i in np.linspace(0, n - 1, min(n, MOST_STAGES - 1))})
    return residual(chosen)


def name(model: Llava, token: int) -> str:
    """Return a token's text without blanks around it."""
    return model.tokenizer.piece(token).strip()
