"""Draws what families see of one picture: the tiles as they enter the tower, and rows laid back over the source.

`make seen` runs it; nothing but the package is needed. Pictures are fitted as for the released models. The networks
are small and random, so the map of attention shows which pixels a row stands for, and nothing that a model knows.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import llava_ref
from llava_ref.conformance.pairs.idefics3 import Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.internvl import InternVLSpec, build_internvl
from llava_ref.conformance.pairs.mllama import MllamaTextSpec, MllamaVisionSpec, build_mllama
from llava_ref.conformance.pairs.pairs import Pair, TextSpec, VisionSpec, build
from llava_ref.conformance.pairs.pixtral import PixtralSpec, build_pixtral
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec, QwenVisionSpec, build_qwen2vl
from llava_ref.images.fit import Preprocessed, Tile
from llava_ref.study.attention import attention_to_picture
from llava_ref.study.overlay import heat, in_a_row, over_tiles, pixels

ROOT, FOLDER = Path(__file__).parents[2], Path(__file__).parent
SAMPLES = [ROOT / "llava_ref" / "assets" / "pictures" / f"{name}.png" for name in ("caption", "where", "count")]
WIDTH, GAP, LINE, LARGEST = 900, 12, 20, 100_000  # of a figure, between and above its panels; bytes of a picture
FRAME, INK = (200, 30, 60), (40, 40, 40)
SMALL = TextSpec(context=8192, n_layer=2)
SIZES = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))  # llava-v1.6-vicuna-7b's config.json


def llava_next(folder: Path) -> Pair:
    tower = VisionSpec(width=16, n_block=2, n_head=2, image_size=336, patch_size=14, sizes=SIZES)
    return build(folder, SMALL, tower)


def smolvlm(folder: Path) -> Pair:
    """Fit as SmolVLM2 does: tiles of 512 pixels, the longer side 2048."""
    tower = Idefics3Spec(width=16, n_block=1, n_head=2, image_size=512, patch_size=16, merge=4, longest=2048)
    return build_idefics3(folder, SMALL, tower)


def qwen2vl(folder: Path) -> Pair:
    return build_qwen2vl(folder, QwenTextSpec(context=8192), QwenVisionSpec(patch_size=14))


def internvl(folder: Path) -> Pair:
    """Fit as InternVL3 does: tiles of 448 pixels, 12 at most."""
    tower = InternVLSpec(width=16, n_block=1, n_head=2, image_size=448, patch_size=14, most_tiles=12)
    return build_internvl(folder, replace(SMALL, context=4096), tower)


def pixtral(folder: Path) -> Pair:
    """Fit as Pixtral-12B does: squares of 16 pixels, a longer side of at most 1024."""
    return build_pixtral(folder, SMALL, PixtralSpec(n_block=1, image_size=1024, patch_size=16))


def llama_vision(folder: Path) -> Pair:
    """Fit as Llama-3.2-Vision does: four tiles of 560 pixels at most."""
    tower = MllamaVisionSpec(width=16, n_block=1, n_global=0, taken=(0,), n_head=1, image_size=560, patch_size=14)
    return build_mllama(folder, MllamaTextSpec(n_layer=2, looks=(1,)), tower)


FAMILIES: dict[str, Callable[[Path], Pair]] = {
    "llava-1.6": llava_next,
    "smolvlm": smolvlm,
    "qwen2-vl": qwen2vl,
    "internvl": internvl,
    "pixtral": pixtral,
    "llama-3.2-vision": llama_vision,
}


def source() -> Image.Image:
    """Return a wide picture: three samples of the embedded pair's, side by side."""
    return in_a_row([Image.open(path).convert("RGB") for path in SAMPLES])


def main() -> None:
    for name, build_pair in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            pair = build_pair(Path(folder))
            page = figure(llava_ref.load(pair.text, pair.mmproj, backend="numpy", profile="hf"), source())
        path = FOLDER / f"seen-{name}.webp"
        page.save(path, quality=85, method=6)
        print(f"{path.relative_to(ROOT)}: {page.width} x {page.height}, {path.stat().st_size:,} bytes")
        assert path.stat().st_size < LARGEST


def figure(model: llava_ref.Llava, picture: Image.Image) -> Image.Image:
    """Draw the source with the tiles' borders, the tiles, and attention over the source, one below the other."""
    rgb = np.asarray(picture)
    seen = model.preprocess(model.decode_image(rgb))
    request = model.raw_request("what is<image>the color of", (picture,))
    weights = attention_to_picture(model, request, [0])[-1, 0]  # of the last layer, to the picture's rows
    over = over_tiles(weights, seen, *pixels(seen))
    marked = heat(rgb, over, float(np.nanquantile(over, 0.98)))
    n_rows, n_seen = request.spans[0].n_rows, request.spans[0].n_seen
    rows = f"{n_rows} rows in the sequence" if n_seen is None else f"one token in the sequence, and {n_seen} states"
    cut = ", and where its tiles are cut" if parts(seen) else ""
    return in_a_column(
        [
            (f"the picture, {picture.width} x {picture.height}{cut}", outlined(picture, seen)),
            *tiles(seen),
            (f"{rows}: a random decoder's attention to each, over the pixels it stands for", Image.fromarray(marked)),
        ]
    )


def outlined(picture: Image.Image, seen: Preprocessed) -> Image.Image:
    """Draw the border of each part of the picture over it."""
    page = picture.copy()
    draw = ImageDraw.Draw(page)
    for tile in parts(seen):
        (left, top), (right, bottom) = corners(tile)
        box = (max(left, 0), max(top, 0), min(right, page.width) - 1, min(bottom, page.height) - 1)
        draw.rectangle(box, outline=FRAME, width=2)
    return page


def parts(seen: Preprocessed) -> list[Tile]:
    """Return the tiles but the overview, line by line."""
    found = [tile for tile in seen.tiles if tile is not seen.whole]
    return sorted(found, key=lambda tile: (tile.affine.shift_y, tile.affine.shift_x))


def corners(tile: Tile) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the points of the source that a tile's first and last corner show."""
    height, width = tile.seen.shape[:2]
    return tile.affine.to_source(0, 0), tile.affine.to_source(width, height)


def tiles(seen: Preprocessed) -> list[tuple[str, Image.Image]]:
    """Return the tiles as they lie in the picture, and the overview, each with what it is."""
    height, width = seen.whole.seen.shape[:2]
    whole, found = Image.fromarray(seen.whole.seen), parts(seen)
    if not found:
        return [(f"what enters the tower: {width} x {height}", whole)]
    lines = len({tile.affine.shift_y for tile in found})
    columns, side = len(found) // lines, (WIDTH - 2 * GAP) // (len(found) // lines + 1)
    page = Image.new("RGB", (WIDTH - 2 * GAP, max(lines, 1) * side), "white")
    for i, tile in enumerate(found):
        y, x = divmod(i, columns)
        page.paste(fitted(Image.fromarray(tile.seen), side - 6), (x * side, y * side))
    page.paste(fitted(whole, side - 6), (columns * side + 6, 0))
    words = f"what enters the tower: {len(found)} tiles of {width} x {height} and, on the right, the overview"
    return [(words, page)]


def fitted(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, round(picture.height * side / picture.width)), Image.Resampling.LANCZOS)


def in_a_column(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Put panels below one another, each under its line of text and no wider than the figure."""
    inner = WIDTH - 2 * GAP
    shown = [(text, picture if picture.width == inner else fitted(picture, inner)) for text, picture in panels]
    page = Image.new("RGB", (WIDTH, sum(LINE + picture.height + GAP for _, picture in shown)), "white")
    draw, font, at = ImageDraw.Draw(page), ImageFont.load_default(15), 0
    for text, picture in shown:
        draw.text((GAP, at), text, fill=INK, font=font)
        page.paste(picture, (GAP, at + LINE))
        at += LINE + picture.height + GAP
    return page


if __name__ == "__main__":
    main()
