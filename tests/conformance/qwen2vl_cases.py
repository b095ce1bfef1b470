"""Cases of Qwen2-VL and Qwen2.5-VL: pairs, prompts and pictures, for every comparison with a reference."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec, QwenVisionSpec, build_qwen2vl

WORDS = "what is the color of a large small red circle and how many blue"


@dataclass(frozen=True)
class Sent:
    """A pair, a prompt, and its pictures: rows and columns of blocks, or width and height."""

    prompt: str
    grids: tuple[tuple[int, int], ...] = ()
    text: QwenTextSpec = QwenTextSpec()
    vision: QwenVisionSpec = QwenVisionSpec()
    sizes: tuple[tuple[int, int], ...] = ()


PLAIN = QwenVisionSpec(gated=False)
WIDER = QwenTextSpec(width=64, n_head_kv=1, sections=(2, 3, 3, 0))
WHOLE_BLOCKS = {
    "text alone": Sent(WORDS),
    "2.5, four windows": Sent(f"{WORDS}<image>{WORDS}", ((5, 7),)),
    "2.5, windows of 2 blocks, MQA, two pictures": Sent(
        f"<image>\nthe <image>{WORDS}", ((3, 5), (8, 2)), WIDER, QwenVisionSpec(patch_size=28, n_block=4)
    ),
    "2.5, small patches, large eps, a picture last": Sent(
        f"{WORDS}<image>", ((9, 10),), QwenTextSpec(n_head_kv=4), QwenVisionSpec(patch_size=7, eps=0.05, pattern=3)
    ),
    "2.5, no block sees everything": Sent("<image>", ((5, 6),), vision=QwenVisionSpec(pattern=3, n_block=2)),
    "2": Sent(f"{WORDS}<image>{WORDS}", ((5, 7),), vision=PLAIN),
    "2, swapped, large eps, three pictures": Sent(
        "<image><image>\nthe color<image>", ((2, 4), (6, 3), (1, 8)), vision=replace(PLAIN, swapped=True, eps=0.05)
    ),
    "2, tied, the base left out": Sent(
        f"a<image>{WORDS}", ((4, 4),), QwenTextSpec(tied=True, rope_base=None), replace(PLAIN, n_head=5, mlp_width=80)
    ),
}
WIDE, TALL, LARGE, TINY, POINT, THIN = (300, 71), (61, 250), (523, 410), (9, 5), (1, 1), (180, 2)
ANY_SIZE = {
    "2.5, a wide one in the middle": Sent(f"{WORDS}<image>{WORDS}", sizes=(WIDE,)),
    "2.5, a large one, more than a unit": Sent(
        f"a<image>{WORDS}",
        text=QwenTextSpec(n_head=2, sections=(4, 3, 5, 0)),
        vision=QwenVisionSpec(patch_size=8),
        sizes=(LARGE,),
    ),
    "2.5, wide, tiny and tall": Sent(
        "<image>the<image>\n<image>", text=WIDER, vision=QwenVisionSpec(n_block=5, pattern=4), sizes=(WIDE, TINY, TALL)
    ),
    "2, a tall one first": Sent(f"<image>{WORDS}", vision=PLAIN, sizes=(TALL,)),
    "2, a point and a line last": Sent(f"{WORDS}<image><image>", vision=PLAIN, sizes=(POINT, THIN)),
}


def case_of(folder: Path, sent: Sent) -> Case:
    """Write the files of a case into `folder`."""
    pair, side = build_qwen2vl(folder, sent.text, sent.vision), 2 * sent.vision.patch_size
    sizes = [(columns * side, rows * side) for rows, columns in sent.grids] + list(sent.sizes)
    images = tuple(folder / f"{i}.png" for i in range(len(sizes)))
    for path, (width, height) in zip(images, sizes, strict=True):
        rng = np.random.default_rng(height)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return Case(pair.text, pair.mmproj, images, sent.prompt)
