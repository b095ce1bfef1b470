"""Pairs of pictures that differ in the colour of one shape, and what swapping rows between them does to the answer.

`python -m tests.study.colour_swaps` prints, over 40 pairs: how often the rows of the shape's region carry the colour,
how often those of another region do, and by which layer the colour has left the picture's positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

import llava_ref
from llava_ref.generation.request import Request
from llava_ref.generation.sampling import Sampling
from llava_ref.model import Llava
from llava_ref.scenes import COLOURS, Scene, Thing, sample_scene
from llava_ref.study.attention import picture_positions
from llava_ref.study.patching import patched_answer


@dataclass(frozen=True)
class Swap:
    """Two prompts of one layout; rows of the picture that show the shape, and as many that do not."""

    source: Request
    into: Request
    colours: tuple[str, str]  # the right answers to the two
    region: list[int]
    elsewhere: list[int]


def swaps(model: Llava, n: int, seed: int = 0) -> Iterator[Swap]:
    """Of which the model answers both right."""
    rng = np.random.default_rng([seed, 7])
    found = 0
    while found < n:
        scene = sample_scene(rng)
        shapes = [thing for thing in scene.things if thing.kind == "shape"]
        names = [thing.name for thing in shapes]
        alone = [thing for thing in shapes if names.count(thing.name) == 1]
        if scene.rows != 3 or scene.columns != 3 or not alone:
            continue
        swap = _swap(model, scene, alone[0], rng)
        if swap is not None:
            found += 1
            yield swap


def _swap(model: Llava, scene: Scene, thing: Thing, rng: np.random.Generator) -> Swap | None:
    taken = {other.colour for other in scene.things}
    colour = str(rng.choice([name for name in COLOURS if name not in taken]))
    changed = replace(thing, colour=colour, rgb=COLOURS[colour])
    others = tuple(changed if other is thing else other for other in scene.things)
    pictures = [scene.draw(), replace(scene, things=others).draw()]
    requests = [ask(model, picture, f"What colour is the {thing.name}?") for picture in pictures]
    colours = (thing.colour, colour)
    if any(says(model, request) != colour for request, colour in zip(requests, colours, strict=True)):
        return None
    region = near(model, pictures)
    rest = [row for row in range(model.tokens_per_image) if row not in region]
    elsewhere = sorted(int(row) for row in rng.choice(rest, min(len(region), len(rest)), replace=False))
    return Swap(requests[0], requests[1], colours, region, elsewhere)


def ask(model: Llava, picture: Image.Image, question: str) -> Request:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return model.request([{"role": "user", "content": content}])


def says(model: Llava, request: Request) -> str:
    return model.answer(request, Sampling(), max_tokens=4).finish().text.strip()


def near(model: Llava, pictures: list[Image.Image]) -> list[int]:
    """Rows of the patches in which two pictures differ, and of those around."""
    grid, _ = model.span(1, 1).grid
    a, b = (np.asarray(picture, np.int64) for picture in pictures)
    rows, columns = np.nonzero((a != b).any(-1))
    side = a.shape[0] / grid
    cells = {(int(r / side), int(c / side)) for r, c in zip(rows, columns, strict=True)}
    around = {(r + i, c + j) for r, c in cells for i in (-1, 0, 1) for j in (-1, 0, 1)}
    return sorted(r * grid + c for r, c in around if 0 <= r < grid and 0 <= c < grid)


def moved(model: Llava, swap: Swap, stage: str, rows: list[int]) -> bool:
    """Whether the answer is that of the source's picture once rows of the picture come from there."""
    first = picture_positions(swap.into)[0] if stage.startswith(("embd", "blk.")) else 0
    reply = patched_answer(model, swap.into, swap.source, stage, [first + row for row in rows], max_tokens=4)
    return reply.text.strip() == swap.colours[0]


def main() -> None:
    model = llava_ref.load(*llava_ref.embedded(), threads=1)
    found = list(swaps(model, 40))
    stages = ["vision.patch_embd", "projector.out", *(f"blk.{i}.out" for i in range(model.text.config.n_layer))]
    for stage in stages:
        region = np.mean([moved(model, swap, stage, swap.region) for swap in found])
        elsewhere = np.mean([moved(model, swap, stage, swap.elsewhere) for swap in found])
        print(f"{stage:18} region {region:.1%}, elsewhere {elsewhere:.1%}")


if __name__ == "__main__":
    main()
