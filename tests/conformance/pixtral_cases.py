"""Cases of Pixtral and Mistral Small 3.1: pairs, prompts and pictures, for every comparison with a reference."""

from dataclasses import replace

from llava_ref.conformance.pairs.pairs import TextSpec
from llava_ref.conformance.pairs.pixtral import PixtralSpec, build_pixtral

from .family_stages import Asked, Family

TOWER = PixtralSpec()
SMALL = PixtralSpec(merge=2, patch_size=14, image_size=140)  # Mistral Small 3.1
WIDE, TALL, SQUARE, TINY, POINT, THIN = (131, 40), (37, 150), (90, 90), (9, 5), (1, 1), (98, 2)  # width, height
WORDS = "what is the color of a large small red circle, 12 or 345"
CASES = {
    "text alone": Asked(WORDS),
    "a wide one, as the template has it": Asked(f"<s>[INST]<image>{WORDS}[/INST]", (WIDE,)),
    "a tall one first, MHA, large eps": Asked(
        f"<image>{WORDS}", (TALL,), TextSpec(n_head_kv=4, eps=0.05), replace(TOWER, eps=0.05, n_head=2)
    ),
    "a square one last, biases, tied": Asked(
        f"{WORDS}\n\n<image>", (SQUARE,), TextSpec(n_head_kv=1, tied=True), replace(TOWER, biases=True)
    ),
    "four of all shapes, three of them touching": Asked(
        "<image><image>the color<image><image> red", (TINY, TALL, WIDE, POINT)
    ),
    "a large one, more than a unit, small patches": Asked(
        f"is<image>{WORDS}", ((300, 290),), vision=replace(TOWER, patch_size=4, image_size=128, n_block=2)
    ),
    "GELU in the tower, a line": Asked(
        f"<image>{WORDS}<image>", (THIN, SQUARE), vision=replace(TOWER, use_gelu=True, n_head=6)
    ),
    "merged, a wide one in the middle": Asked(f"{WORDS}<image>{WORDS}", (WIDE,), vision=SMALL),
    "merged, large eps, tall, tiny and wide": Asked(
        "<image>the<image>\n<image>", (TALL, TINY, WIDE), vision=replace(SMALL, eps=0.05, biases=True, n_head=4)
    ),
    "merged by three, a size that is no whole square": Asked(
        f"a<image>{WORDS}", (SQUARE,), vision=replace(SMALL, merge=3, patch_size=5, image_size=77)
    ),
}
FAMILY = Family("Pixtral", build_pixtral, CASES, TextSpec(context=2048), TOWER)
