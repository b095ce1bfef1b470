"""`encode`: write the rows that a picture becomes, and the pixels that the tower gets."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from ..errors import ParameterError, visible
from ..images.fit import save_png
from ..loading import embedded
from . import options
from .output import check_output, note, print_json, write_tensors
from .parser import Example, Parser
from .progress import LINE

EXAMPLES: Sequence[Example] = (
    (
        "llava-ref encode --image cat.jpg -o cat.safetensors --save-seen seen.png",
        "the shapes written, on standard error; seen.png is the picture as the tower gets it",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_mmproj(parser)
    options.add_images(parser)
    options.add_output(parser, "OUT.safetensors", "the file to write: pixels and image_embeddings")
    options.add_output(parser, "FILE.png", "save the picture as the tower gets it", "--save-seen")
    options.add_running(parser)
    options.add_json(parser, "say what was written as JSON")


def run(args: argparse.Namespace) -> int:
    """Write `pixels` (tiles, 3, S, S) and `image_embeddings` (N, D), both float32.

    The header has the source's width and height and each tile's map back to it, `Tile.affine` of `images.fit`."""
    if len(args.image) != 1:
        raise ParameterError("--image", f"{len(args.image)} given", "expected one picture")
    mmproj, source = args.mmproj or embedded()[1], args.image[0]
    outputs = [args.output] if args.save_seen is None else [args.output, args.save_seen]
    for output in outputs:
        check_output(output, [mmproj, source])
    with LINE.loading():
        model = options.load_model(args, None, mmproj)
    image = model.decode_image(source)
    for warning in image.warnings:
        note(f"warning: {visible(warning)}")
    with LINE.open(model):
        tap = model.probes.tap(image)
        picture = model.preprocess(image, tap)
        rows = model.encode(picture.pixels, picture.source, tap)
    tensors = {"pixels": picture.pixels, "image_embeddings": rows}
    facts = {
        "mmproj": mmproj.name,
        "image": source.name,
        "source": list(picture.source),
        "affine": asdict(picture.affine),
        **({"tiles": [asdict(tile.affine) for tile in picture.tiles]} if len(picture.tiles) > 1 else {}),
    }
    write_tensors(args.output, tensors, options.about(model, **facts))
    if args.save_seen is not None:
        save_png(picture, args.save_seen)
    shapes = {name: list(x.shape) for name, x in tensors.items()}
    if args.json:
        print_json({"output": str(args.output), "tensors": shapes, **facts} | model.settings)
    else:
        note(f"{args.output}: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
    return 0
