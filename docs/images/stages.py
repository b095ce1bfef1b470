"""Draws one picture for each stage of a run, as docs/ shows them: the embedded pair answers a question about a picture.

`make seen` runs it; nothing but the package is needed. Every number in the pictures comes from that one run.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import llava_ref
from llava_ref.chat.chunks import TextChunk
from llava_ref.generation.request import Request, Step
from llava_ref.scale import laid
from llava_ref.study.lens import logit_lens
from llava_ref.study.overlay import heat, in_a_row
from llava_ref.tracing.trace import Trace

FOLDER, PICTURES = Path(__file__).parent, llava_ref.embedded()[0].parent / "pictures"
SAMPLE, QUESTION = PICTURES / "where.png", "Where is the black heart?"
SIDE, GAP, LINE, LARGEST = 200, 14, 22, 60_000  # of a panel; between panels; of a line of text; bytes of a picture
INK, PALE, MARK = (40, 40, 40), (235, 238, 242), (220, 40, 60)
FONT = ImageFont.load_default(13)


def main() -> None:
    model = llava_ref.load(*llava_ref.embedded(), backend="numpy")
    request = model.request([{"role": "user", "content": [
        {"type": "image", "image": SAMPLE}, {"type": "text", "text": QUESTION},
    ]}])  # fmt: skip
    with model.trace("*", "*kq_soft_max") as trace:
        steps = list(model.answer(request, llava_ref.Sampling(top_logprobs=5), max_tokens=4).steps())
    save("stage-1-picture", profiles())
    save("stage-2-tower", tower(trace))
    save("stage-3-projector", projector(trace))
    save("stage-4-prompt", prompt(model, request))
    save("stage-5-decoder", decoder(model, trace, request))
    save("stage-6-answer", answer(model, steps))


def save(name: str, page: Image.Image) -> None:
    path = FOLDER / f"{name}.webp"
    page.save(path, quality=90, method=6)
    print(f"{path.name}: {page.width} x {page.height}, {path.stat().st_size:,} bytes")
    assert path.stat().st_size < LARGEST


def panel(picture: Image.Image, caption: str, side: int = SIDE) -> Image.Image:
    """Put a picture, `side` wide, above its caption."""
    shown = picture.convert("RGB").resize(
        (side, round(picture.height * side / picture.width)), Image.Resampling.NEAREST
    )
    lines = caption.split("\n")
    page = Image.new("RGB", (side + 2 * GAP, shown.height + GAP + LINE * len(lines) + GAP), "white")
    page.paste(shown, (GAP, GAP))
    ImageDraw.Draw(page).rectangle([GAP - 1, GAP - 1, GAP + shown.width, GAP + shown.height], outline=PALE)
    for i, line in enumerate(lines):
        ImageDraw.Draw(page).text((GAP, GAP + shown.height + 4 + i * LINE), line, fill=INK, font=FONT)
    return page


def profiles() -> Image.Image:
    """Show a wide picture, and the square that enters the tower in each profile."""
    wide = in_a_row([Image.open(PICTURES / f"{name}.png").convert("RGB") for name in ("caption", "where")])
    panels = [panel(wide, f"the file\n{wide.width} x {wide.height} pixels", 2 * SIDE)]
    for profile, words in (
        ("llava", "padded, then resized"),
        ("hf", "resized, then cut"),
        ("llama.cpp", "resized, then padded"),
    ):
        tower = llava_ref.load(None, llava_ref.embedded()[1], backend="numpy", profile=profile)
        seen = tower.preprocess(tower.decode_image(np.asarray(wide)))
        panels.append(panel(Image.fromarray(seen.seen), f"profile {profile}\n{words}", SIDE * 3 // 4))
    return in_a_row(panels)


def shades(values: np.ndarray, most: float) -> Image.Image:
    """Return numbers (y, x) as colours on white; `most` is the end of the scale."""
    return Image.fromarray(laid(np.full(3, 255), values / most))


def seen(trace: Trace) -> Image.Image:
    """Return the square that entered the tower."""
    return Image.fromarray(trace["image.seen"])


def grid(rows: np.ndarray) -> np.ndarray:
    """Return the rows of a picture's patches (64, D) where they lie, (8, 8, D)."""
    return rows.reshape(8, 8, -1)


def tower(trace: Trace) -> Image.Image:
    """Show for one patch, on the black heart, how alike every other patch is, block after block."""
    y, x = 6, 2
    picture = seen(trace)
    panels = [
        panel(
            framed(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), x, y),
            "what enters the tower,\nand one of its 64 patches",
            SIDE,
        )
    ]
    stages = {
        "vision.patch_embd": "as embedded",
        **{f"vision.blk.{i}.layer_out": f"after block {i}" for i in (0, 1, 3)},
    }
    for name, words in stages.items():
        rows = trace[name][-64:]
        unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        alike = grid(unit @ unit[8 * y + x])[..., 0]
        panels.append(panel(shades(alike, 1.0), f"{words}:\ncosine with that patch", SIDE * 3 // 4))
    return in_a_row(panels)


def framed(picture: Image.Image, x: int, y: int) -> Image.Image:
    """Draw the grid of patches over a picture, and a frame around one of them."""
    draw, side = ImageDraw.Draw(picture), picture.width // 8
    for i in range(1, 8):
        draw.line([(i * side, 0), (i * side, picture.height)], fill=(200, 200, 200))
        draw.line([(0, i * side), (picture.width, i * side)], fill=(200, 200, 200))
    draw.rectangle([x * side, y * side, (x + 1) * side, (y + 1) * side], outline=MARK, width=3)
    return picture


def projector(trace: Trace) -> Image.Image:
    """Show the rows before and after the projector, coloured by their three strongest directions, and their lengths."""
    rows = trace["projector.out"]
    panels = [panel(seen(trace), "what entered the tower")]
    for name, words in (("vision.features", "features, 64 x 128"), ("projector.out", "rows, 64 x 192")):
        panels.append(panel(Image.fromarray(directions(grid(trace[name]))), f"{words}\nthree strongest directions"))
    length = grid(np.linalg.norm(rows, axis=-1)[:, None])[..., 0]
    panels.append(panel(shades(length, float(length.max())), f"length of each row\n0 to {length.max():,.0f}"))
    return in_a_row(panels)


def directions(rows: np.ndarray) -> np.ndarray:
    """Return rows (y, x, D) as colours: their first three principal components, each from dark to light."""
    flat = rows.reshape(-1, rows.shape[-1])
    centred = flat - flat.mean(0)
    parts = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    low, high = parts.min(0), parts.max(0)
    return np.rint((parts - low) / (high - low) * 255).astype(np.uint8).reshape(*rows.shape[:2], 3)


def prompt(model: llava_ref.Llava, request: Request) -> Image.Image:
    """Show the sequence: a box for each token with its text and id, one box for the rows of the picture."""
    boxes: list[tuple[str, str, bool]] = []
    for chunk in request.chunks:
        if isinstance(chunk, TextChunk):
            boxes += [(visible(model, i), str(i), False) for i in chunk.token_ids]
        else:
            boxes.append(("<image>", f"{len(request.rows(chunk))} rows", True))
    page = Image.new("RGB", (900, 3 * 52 + GAP), "white")
    draw, x, y = ImageDraw.Draw(page), GAP, GAP
    for text, number, picture in boxes:
        width = max(28, 12 + round(max(draw.textlength(text, FONT), draw.textlength(number, FONT))))
        width = 150 if picture else width
        if x + width > page.width - GAP:
            x, y = GAP, y + 52
        draw.rounded_rectangle([x, y, x + width, y + 42], 5, fill=(255, 226, 180) if picture else PALE)
        draw.text((x + 6, y + 4), text, fill=INK, font=FONT)
        draw.text((x + 6, y + 22), number, fill=(120, 120, 120), font=FONT)
        x += width + 5
    return page.crop((0, 0, page.width, y + 42 + GAP))


def decoder(model: llava_ref.Llava, trace: Trace, request: Request) -> Image.Image:
    """Show the last position: where each block attends to in the picture, and what would be said after each block."""
    at, picture = len(request.token_ids) - 1, np.asarray(request.token_ids) < 0
    panels = []
    for i in range(model.text.config.n_layer):
        weights = trace[f"blk.{i}.kq_soft_max"][:, at, : at + 1].mean(0)
        shares = grid(weights[picture][:, None])[..., 0]
        words = f"block {i}: {shares.sum():.0%} of its\nattention is on the picture"
        rgb = trace["image.seen"]
        over = heat(rgb, np.kron(shares, np.ones((len(rgb) // 8,) * 2)), float(shares.max()))
        panels.append(panel(Image.fromarray(over), words, SIDE * 3 // 4))
    said = logit_lens(model, request, top=1)
    page = Image.new("RGB", (SIDE + 3 * GAP, panels[0].height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), "the next token, after", fill=INK, font=FONT)
    for row, layer in enumerate(said.layers):
        token, share = said.tokens[row, at, 0], float(said.probabilities[row, at, 0])
        top = GAP + LINE * (row + 1)
        draw.rectangle([GAP + 70, top, GAP + 70 + round(130 * share), top + 17], fill=(255, 226, 180))
        draw.text((GAP, top), layer.removesuffix(".out"), fill=INK, font=FONT)
        draw.text((GAP + 74, top), f"{visible(model, int(token))}  {share:.0%}", fill=INK, font=FONT)
    return in_a_row([*panels, page])


def answer(model: llava_ref.Llava, steps: Sequence[Step]) -> Image.Image:
    """Show the likeliest tokens at each step of the answer, the chosen one first."""
    panels = []
    for n, step in enumerate(steps):
        page = Image.new("RGB", (SIDE + 3 * GAP, 2 * GAP + LINE * 6), "white")
        draw = ImageDraw.Draw(page)
        draw.text((GAP, GAP), f"step {n + 1}", fill=INK, font=FONT)
        for row, (token, logprob) in enumerate(step.score.top, 1):
            share, top = float(np.exp(logprob)), GAP + LINE * row
            draw.rectangle([GAP, top, GAP + round(SIDE * share), top + 17], fill=(255, 226, 180) if row == 1 else PALE)
            draw.text((GAP + 4, top), f"{visible(model, int(token))}  {share:.2%}", fill=INK, font=FONT)
        panels.append(page)
    return in_a_row(panels)


def visible(model: llava_ref.Llava, token: int) -> str:
    """Return a token's text, a dot in the place of each space."""
    return model.tokenizer.text_of(token).replace("\u2581", "\u00b7")


if __name__ == "__main__":
    main()
