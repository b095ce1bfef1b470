"""Prepare a prompt and its pictures with transformers' own PixtralProcessor.

n pictures, H and W sides of the largest, Y and X of one.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..reference import ReferenceError
from .bpe_tokenizer import KEY, bpe_tokenizer
from .model import HfModel, transformers
from .pixtral import IMAGE as TOKEN
from .settings import VisionSettings
from .vocabulary import IMAGE

MODULE = "transformers.models.pixtral.image_processing_pixtral"
THEIRS = "transformers' PixtralProcessor and a byte-level BPE tokenizer, made from the GGUF file's tokens and merges"


@dataclass(frozen=True, slots=True)
class Padded:
    """Pictures as the tower takes them: zeros below and right of those that are smaller than another."""

    values: np.ndarray  # (n, 3, H, W) float32
    sizes: np.ndarray  # (n, 2): height and width

    def inputs(self, ids: Sequence[int], image: int) -> dict[str, np.ndarray]:
        """Return what the module is given."""
        return {"pixel_values": self.values, "image_sizes": self.sizes}

    def pixels(self) -> list[np.ndarray]:
        """Return each picture's own, (3, Y, X)."""
        return [x[:, :height, :width] for x, (height, width) in zip(self.values, self.sizes, strict=True)]


def token_ids(model: HfModel, prompt: str, pictures: Sequence[Image.Image]) -> list[int]:
    """Return the ids of a prompt with `<image>` for each picture. BOS comes first if the vocabulary asks for it and the
    prompt does not begin with it already."""
    file, string = model.text_file, prompt.replace(IMAGE, TOKEN)
    tokenizer = bpe_tokenizer(file)
    if tokenizer is None:
        raise ReferenceError(file.path, KEY + "pre", f"{file.get(KEY + 'pre')!r}: no known way to a tokenizer")
    bos = file.array(KEY + "tokens", "string")[file.integer(KEY + "bos_token_id", 0, model.n_vocab - 1)]
    more = not string.startswith(bos)  # as transformers does with what a chat template has made
    if not pictures:
        return list(tokenizer(string, add_special_tokens=more)["input_ids"])
    assert model.vision is not None
    processor = _processor()(
        image_processor(model.vision),
        tokenizer,
        patch_size=model.vision.config["patch_size"],
        spatial_merge_size=model.vision.merge,
    )
    made = processor(images=list(pictures), text=[string], add_special_tokens=more, return_tensors="np")
    return list(made["input_ids"][0].tolist())


def _processor() -> Any:
    """Return PixtralProcessor. Its module imports one function of the processor for torchvision, which need not be
    installed; that for Pillow has it too."""
    from transformers.models.pixtral import image_processing_pil_pixtral

    transformers()
    sys.modules.setdefault(MODULE, image_processing_pil_pixtral)
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

    return PixtralProcessor


def image_processor(c: VisionSettings) -> Any:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    side = c.config["patch_size"] * c.merge
    return PixtralImageProcessorPil(
        size={"longest_edge": c.image_size},
        patch_size={"height": side, "width": side},
        image_mean=list(c.mean),
        image_std=list(c.std),
    )


def preprocess(pictures: Sequence[Image.Image], c: VisionSettings) -> tuple[Padded, list[np.ndarray]]:
    """Return the pixels, and each picture before scaling and normalising, (Y, X, 3) uint8."""
    processor = image_processor(c)
    pixels = processor(list(pictures), return_tensors="np")
    made = processor(list(pictures), do_rescale=False, do_normalize=False, return_tensors="np")
    seen = Padded(made["pixel_values"], made["image_sizes"]).pixels()
    padded = Padded(pixels["pixel_values"].astype(np.float32), pixels["image_sizes"])
    return padded, [np.ascontiguousarray(x.transpose(1, 2, 0)).astype(np.uint8) for x in seen]


def sizes(pictures: Sequence[tuple[int, int]], c: VisionSettings) -> list[tuple[int, int]]:
    """Return height and width at which the processor shows pictures of these widths and heights, nothing resized."""
    from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

    side, longest = c.config["patch_size"] * c.merge, c.image_size
    blank: Any = [np.broadcast_to(np.uint8(0), (3, height, width)) for width, height in pictures]
    return [get_resize_output_image_size(x, (longest, longest), (side, side)) for x in blank]
