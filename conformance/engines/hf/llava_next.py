"""Cut pictures into tiles with transformers' own LlavaNextImageProcessorPil, and count their rows with its processor.

S image size. A GGUF file names sizes by width and height, transformers by height and width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .settings import VisionSettings


def image_processor(c: VisionSettings) -> Any:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    return LlavaNextImageProcessorPil(
        size={"shortest_edge": c.image_size},
        crop_size={"height": c.image_size, "width": c.image_size},
        image_grid_pinpoints=[[height, width] for width, height in c.sizes],
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


def n_rows(sizes: Sequence[tuple[int, int]], c: VisionSettings) -> list[int]:
    """Return the rows of pictures of these widths and heights."""
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    processor: Any = object.__new__(LlavaNextProcessor)  # it asks for a tokenizer, and counts without one
    processor.image_processor, processor.patch_size = image_processor(c), c.config["patch_size"]
    processor.num_additional_image_tokens = 1  # the class token, which `default` takes off again
    side = c.image_size
    return [processor._get_number_of_features(height, width, side, side) - 1 for width, height in sizes]
