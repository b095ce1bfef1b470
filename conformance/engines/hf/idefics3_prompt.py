"""Prepare a prompt and its pictures with transformers' own Idefics3Processor.

n tiles of all pictures, S image size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..reference import ReferenceError
from .bpe_tokenizer import KEY, bpe_tokenizer
from .model import HfModel, transformers
from .settings import VisionSettings

THEIRS = "transformers' Idefics3Processor and a byte-level BPE tokenizer, made from the GGUF file's tokens and merges"


def token_ids(model: HfModel, prompt: str, pictures: Sequence[Image.Image]) -> list[int]:
    """Return the ids of a prompt with `<image>` for each picture, the image token as often as its tiles have rows."""
    tokenizer = bpe_tokenizer(model.text_file)
    if tokenizer is None:
        pre = model.text_file.string(KEY + "pre", "")
        raise ReferenceError(model.text_file.path, KEY + "pre", f"{pre!r}: no known way to transformers' tokenizer")
    if not pictures:
        return list(tokenizer(prompt)["input_ids"])
    assert model.vision is not None
    processor = transformers().Idefics3Processor(
        image_processor(model.vision), tokenizer, image_seq_len=model.vision.n_rows
    )
    return list(processor(images=[list(pictures)], text=[prompt])["input_ids"][0])


def image_processor(c: VisionSettings) -> Any:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    return Idefics3ImageProcessorPil(
        size={"longest_edge": c.longest},
        max_image_size={"longest_edge": c.image_size},
        image_mean=list(c.mean),
        image_std=list(c.std),
    )


def preprocess(pictures: Sequence[Image.Image], c: VisionSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles of all pictures, (n, 3, S, S) float32, and the same before scaling and normalising,
    (n, S, S, 3) uint8."""
    processor, pixels, plain = image_processor(c), [], []
    for picture in pictures:  # by itself: a batch is filled up to the picture with the most tiles
        pixels.append(processor([picture], return_tensors="np")["pixel_values"][0])
        plain.append(processor([picture], do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0])
    seen = np.ascontiguousarray(np.concatenate(plain).transpose(0, 2, 3, 1)).astype(np.uint8)
    return np.concatenate(pixels).astype(np.float32), seen


def n_tiles(sizes: Sequence[tuple[int, int]], c: VisionSettings) -> list[tuple[int, int]]:
    """Return rows and columns of the tiles that the processor makes of pictures of these widths and heights."""
    processor, found = image_processor(c), []
    for size in sizes:
        made = processor([Image.new("RGB", size)], return_tensors="np", return_row_col_info=True)
        found.append((made["rows"][0][0], made["cols"][0][0]))
    return found
