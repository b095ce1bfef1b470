"""Prepare a prompt and its pictures with transformers' own MllamaImageProcessor and masks.

T tokens, n pictures, K tiles at most, S side of a tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..reference import ReferenceError
from .bpe_tokenizer import KEY, THEIRS, bpe_tokenizer
from .mllama import PICTURE
from .model import HfModel
from .settings import VisionSettings

__all__ = ["THEIRS", "TilesOfPictures", "grids", "preprocess", "token_ids"]
IMAGE = "<image>"


@dataclass(frozen=True, slots=True)
class TilesOfPictures:
    """Pictures as the model takes them."""

    values: np.ndarray  # (1, n, K, 3, S, S) float32
    ids: np.ndarray  # (1, n): the number of each one's grid of tiles
    mask: np.ndarray  # (1, n, K): 1 for a tile with a picture

    def inputs(self, ids: Sequence[int], image: int) -> dict[str, np.ndarray]:
        """Return what the module is given beside token ids (T,)."""
        from transformers.models.mllama import processing_mllama as theirs

        spans = theirs.get_cross_attention_token_mask(list(ids), image)
        counts = [int(count) for count in self.mask[0].sum(1)]
        seen = theirs.convert_sparse_cross_attention_mask_to_dense([spans], [counts], self.mask.shape[2], len(ids))
        return {
            "pixel_values": self.values,
            "aspect_ratio_ids": self.ids,
            "aspect_ratio_mask": self.mask,
            "cross_attention_mask": seen,
        }


def token_ids(model: HfModel, prompt: str, pictures: Sequence[Image.Image]) -> list[int]:
    """Return the ids of a prompt with `<image>` for each picture, BOS in front.

    The processor itself puts BOS behind pictures that a prompt begins with."""
    tokenizer, file = bpe_tokenizer(model.text_file), model.text_file
    if tokenizer is None:
        pre = file.string(KEY + "pre", "")
        raise ReferenceError(file.path, KEY + "pre", f"{pre!r}: no known way to transformers' tokenizer")
    text = prompt.replace(IMAGE, PICTURE)
    if file.boolean(KEY + "add_bos_token", False):  # the tokenizer puts it there
        bos = file.integer(KEY + "bos_token_id", 0, 1 << 24)
        text = text.removeprefix(file.array(KEY + "tokens", "string")[bos])
    return list(tokenizer(text)["input_ids"])


def image_processor(c: VisionSettings) -> Any:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    S = c.image_size
    return MllamaImageProcessorPil(
        size={"height": S, "width": S},
        max_image_tiles=c.config["max_num_tiles"],
        image_mean=list(c.mean),
        image_std=list(c.std),
    )


def preprocess(pictures: Sequence[Image.Image], c: VisionSettings) -> tuple[TilesOfPictures, list[np.ndarray]]:
    """Return the tiles, and each picture's canvas before scaling and normalising, (rows * S, columns * S, 3) uint8."""
    processor = image_processor(c)
    made = processor([list(pictures)], return_tensors="np")
    plain = processor([list(pictures)], do_rescale=False, do_normalize=False, return_tensors="np")
    found = TilesOfPictures(
        made["pixel_values"].astype(np.float32), made["aspect_ratio_ids"], made["aspect_ratio_mask"]
    )
    seen = [
        canvas(torch.from_numpy(tiles), int(number), c).permute(1, 2, 0).numpy().astype(np.uint8)
        for tiles, number in zip(plain["pixel_values"][0], made["aspect_ratio_ids"][0], strict=True)
    ]
    return found, seen


def canvas(tiles: torch.Tensor, number: int, c: VisionSettings) -> torch.Tensor:
    """Put the tiles of a picture side by side.  (K, 3, S, S) -> (3, rows * S, columns * S)"""
    rows, columns = c.config["supported_aspect_ratios"][number - 1]
    here = tiles[: rows * columns].reshape(rows, columns, *tiles.shape[1:])
    return here.permute(2, 0, 3, 1, 4).reshape(3, rows * tiles.shape[2], columns * tiles.shape[3])


def grids(sizes: Sequence[tuple[int, int]], c: VisionSettings) -> list[tuple[int, int]]:
    """Return rows and columns of the tiles that the processor makes of pictures of these widths and heights."""
    from transformers.models.mllama.image_processing_pil_mllama import get_optimal_tiled_canvas

    S, most = c.image_size, c.config["max_num_tiles"]
    found = [get_optimal_tiled_canvas(height, width, most, S) for width, height in sizes]
    return [(int(height) // S, int(width) // S) for height, width in found]
