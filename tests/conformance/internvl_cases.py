"""Share between the tests of InternVL: random pairs, and prompts with pictures of all shapes."""

from dataclasses import replace

from llava_ref.conformance.pairs.internvl import InternVLSpec, build_internvl
from llava_ref.conformance.pairs.pairs import TextSpec
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec

from .family_stages import Asked, Family

TOWER, QWEN2 = InternVLSpec(), QwenTextSpec(sections=())
WIDE, TALL, SQUARE, TINY, THIN = (131, 40), (37, 212), (90, 90), (9, 5), (200, 3)  # width, height
WORDS = "what is the color of a large small red circle, 12 or 345"
TURN = "<|im_start|>user\n<image>\n{}<|im_end|>\n<|im_start|>assistant\n"
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
    "a large one": Asked("<image>is", ((701, 503),), vision=replace(TOWER, most_tiles=12)),
    "text alone": Asked(WORDS),
}  # fmt: skip
FAMILY = Family("InternVL", build_internvl, CASES, QWEN2, TOWER)
