"""Share between the tests of InternVL: random pairs, prompts with pictures of all shapes, and this project's runs."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

import llava_ref
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.internvl import InternVLSpec, build_internvl
from llava_ref.conformance.pairs.pairs import TextSpec
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec

N_GREEDY = 8
TOWER, QWEN2 = InternVLSpec(), QwenTextSpec(sections=())
WIDE, TALL, SQUARE, TINY, THIN = (131, 40), (37, 212), (90, 90), (9, 5), (200, 3)  # width, height
WORDS = "what is the color of a large small red circle, 12 or 345"
TURN = "<|im_start|>user\n<image>\n{}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Asked:
    """A pair, a prompt, and the sizes of its pictures."""

    prompt: str
    sizes: tuple[tuple[int, int], ...]
    text: QwenTextSpec | TextSpec = QWEN2
    vision: InternVLSpec = TOWER


CASES = {
    "a wide one, as the template has it": Asked(TURN.format(WORDS), (WIDE,)),
    "a tall one first, llama, MHA, large eps": Asked(
        f"<image>{WORDS}", (TALL,), TextSpec(n_head_kv=4, eps=0.05, biases=True), replace(TOWER, eps=0.05)
    ),
    "a square one last, squares of 4 patches": Asked(
        f"{WORDS}\n\n<image>", (SQUARE,), replace(QWEN2, tied=True, n_head_kv=1), replace(TOWER, merge=4)
    ),
    "four of all shapes": Asked("<image>\n\n<image>the color<image><image> red", (TINY, THIN, TALL, WIDE)),
    "no keys of tiles, 6 patches a side, quick GELU, no biases": Asked(
        f"is<image>{WORDS}<image>", (TALL, (140, 100)), TextSpec(n_head_kv=1, tied=True), replace(
            TOWER, image_size=30, patch_size=5, most_tiles=None, least_tiles=None, use_gelu=False, biases=False)
    ),
    "small ones that a tile holds": Asked("<image>is<image><image>", ((20, 28), (28, 28), (28, 9))),
    "one tile": Asked("<image>is<image>", (WIDE, (29, 29)), vision=replace(TOWER, most_tiles=1)),
    "two tiles at least": Asked("<image>is<image>", (WIDE, SQUARE), vision=replace(TOWER, least_tiles=2)),
}  # fmt: skip


def case_of(name: str, folder: Path) -> Case:
    """Write a case's pair and random pictures into a folder."""
    asked, rng = CASES[name], np.random.default_rng(len(name))
    pair = build_internvl(folder, asked.text, asked.vision)
    images = tuple(folder / f"{i}.png" for i in range(len(asked.sizes)))
    for path, (width, height) in zip(images, asked.sizes, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return Case(pair.text, pair.mmproj, images, asked.prompt)


def model_of(case: Case, profile: str, backend: str = "numpy", **quirks: str) -> llava_ref.Llava:
    return llava_ref.load(case.text, case.mmproj, backend=backend, threads=1, profile=profile, quirks=quirks)


def greedy(model: llava_ref.Llava, case: Case) -> tuple[int, ...]:
    """Return the likeliest tokens; a token that ends generation does not end them."""
    session, tokens = model.session(), list[int]()
    logits = session.feed(model.parts(model.raw_request(case.prompt, case.images)))
    while len(tokens) < N_GREEDY:
        tokens.append(int(logits.argmax()))
        logits = session.feed([tokens[-1:]])
    return tuple(tokens)
