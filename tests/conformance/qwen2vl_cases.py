"""Cases of Qwen2-VL and Qwen2.5-VL: pairs, prompts and pictures, for every comparison with a reference."""

from dataclasses import replace

from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec, QwenVisionSpec, build_qwen2vl

from .family_stages import Asked, Family

WORDS = "what is the color of a large small red circle and how many blue"


def blocks(*grids: tuple[int, int], patch_size: int = 14) -> tuple[tuple[int, int], ...]:
    """Return width and height of pictures of so many rows and columns of blocks of 2 x 2 patches."""
    return tuple((2 * patch_size * columns, 2 * patch_size * rows) for rows, columns in grids)


PLAIN = QwenVisionSpec(gated=False)
WIDER = QwenTextSpec(width=64, n_head_kv=1, sections=(2, 3, 3, 0))
WHOLE_BLOCKS = {
    "text alone": Asked(WORDS),
    "2.5, four windows": Asked(f"{WORDS}<image>{WORDS}", blocks((5, 7))),
    "2.5, windows of 2 blocks, MQA, two pictures": Asked(
        f"<image>\nthe <image>{WORDS}",
        blocks((3, 5), (8, 2), patch_size=28),
        WIDER,
        QwenVisionSpec(patch_size=28, n_block=4),
    ),
    "2.5, small patches, large eps, a picture last": Asked(
        f"{WORDS}<image>",
        blocks((9, 10), patch_size=7),
        QwenTextSpec(n_head_kv=4),
        QwenVisionSpec(patch_size=7, eps=0.05, pattern=3),
    ),
    "2.5, no block sees everything": Asked("<image>", blocks((5, 6)), vision=QwenVisionSpec(pattern=3, n_block=2)),
    "2": Asked(f"{WORDS}<image>{WORDS}", blocks((5, 7)), vision=PLAIN),
    "2, swapped, large eps, three pictures": Asked(
        "<image><image>\nthe color<image>",
        blocks((2, 4), (6, 3), (1, 8)),
        vision=replace(PLAIN, swapped=True, eps=0.05),
    ),
    "2, tied, the base left out": Asked(
        f"a<image>{WORDS}",
        blocks((4, 4)),
        QwenTextSpec(tied=True, rope_base=None),
        replace(PLAIN, n_head=5, mlp_width=80),
    ),
}
WIDE, TALL, LARGE, TINY, POINT, THIN = (300, 71), (61, 250), (523, 410), (9, 5), (1, 1), (180, 2)
ANY_SIZE = {
    "2.5, a wide one in the middle": Asked(f"{WORDS}<image>{WORDS}", sizes=(WIDE,)),
    "2.5, a large one, more than a unit": Asked(
        f"a<image>{WORDS}",
        text=QwenTextSpec(n_head=2, sections=(4, 3, 5, 0)),
        vision=QwenVisionSpec(patch_size=8),
        sizes=(LARGE,),
    ),
    "2.5, wide, tiny and tall": Asked(
        "<image>the<image>\n<image>", text=WIDER, vision=QwenVisionSpec(n_block=5, pattern=4), sizes=(WIDE, TINY, TALL)
    ),
    "2, a tall one first": Asked(f"<image>{WORDS}", vision=PLAIN, sizes=(TALL,)),
    "2, a point and a line last": Asked(f"{WORDS}<image><image>", vision=PLAIN, sizes=(POINT, THIN)),
}

FAMILY = Family("Qwen2-VL", build_qwen2vl, WHOLE_BLOCKS | ANY_SIZE, QwenTextSpec(), QwenVisionSpec())
