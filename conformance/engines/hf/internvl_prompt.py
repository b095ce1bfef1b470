"""Prepare a prompt and its pictures with transformers' own InternVLProcessor.

n tiles of all pictures, S image size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from llava_ref.gguf.file import GGUFFile

from ..reference import ReferenceError
from .bpe_tokenizer import KEY, bpe_tokenizer
from .internvl import IMAGE
from .model import HfModel, transformers
from .qwen2vl_prompt import qwen_tokenizer, without_films
from .settings import VisionSettings

THEIRS = "transformers' InternVLProcessor and its tokenizer, made from the GGUF file's tokens and merges"
NAMED = {  # what the processor asks of its tokenizer
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": IMAGE,
    "video_token": "<video>",
}


def token_ids(model: HfModel, prompt: str, pictures: Sequence[Image.Image]) -> list[int]:
    """Return the ids of a prompt with `<image>` for each picture, the image token as often as its tiles have rows."""
    tokenizer = tokenizer_of(model.text_file)
    if not pictures:
        return list(tokenizer(prompt)["input_ids"])
    assert model.vision is not None
    kind = without_films(transformers().InternVLProcessor)
    processor = kind(image_processor(model.vision), tokenizer, image_seq_length=model.vision.n_rows)
    made = processor(images=list(pictures), text=[prompt.replace("<image>", IMAGE)])
    return list(made["input_ids"][0])


def tokenizer_of(file: GGUFFile) -> Any:
    """Make transformers' tokenizer of a file, with what InternVLProcessor asks of it. Raises ReferenceError."""
    pre = file.string(KEY + "pre", "")
    tokenizer = qwen_tokenizer(file) if pre == "qwen2" else bpe_tokenizer(file)
    if tokenizer is None:
        raise ReferenceError(file.path, KEY + "pre", f"{pre!r}: no known way to transformers' tokenizer")
    for name, token in NAMED.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def image_processor(c: VisionSettings) -> Any:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(
        size={"height": c.image_size, "width": c.image_size},
        crop_to_patches=True,  # as InternVLProcessor asks
        min_patches=c.tiles[0],
        max_patches=c.tiles[1],
        image_mean=list(c.mean),
        image_std=list(c.std),
    )


def preprocess(pictures: Sequence[Image.Image], c: VisionSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles of all pictures, (n, 3, S, S) float32, and the same before scaling and normalising,
    (n, S, S, 3) uint8."""
    processor = image_processor(c)
    pixels = processor(list(pictures), return_tensors="np")["pixel_values"]
    plain = processor(list(pictures), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    return pixels.astype(np.float32), np.ascontiguousarray(plain.transpose(0, 2, 3, 1)).astype(np.uint8)


def n_tiles(sizes: Sequence[tuple[int, int]], c: VisionSettings) -> list[int]:
    """Return the tiles that the processor counts for pictures of these widths and heights."""
    processor = image_processor(c)
    return [processor.get_number_of_image_patches(height, width) for width, height in sizes]
