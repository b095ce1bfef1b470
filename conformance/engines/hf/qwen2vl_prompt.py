"""Prepare a prompt and its pictures with transformers' own processor of Qwen2-VL or Qwen2.5-VL and Qwen2Tokenizer.

n patches of all pictures, each with two frames; P patch side, H and W sides of a picture as the tower gets it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from llava_ref.gguf.file import GGUFFile
from llava_ref.tokenizer.vocabulary import CONTROL, UNKNOWN, USER_DEFINED

from ..reference import ReferenceError
from .model import HfModel, transformers
from .qwen2vl import FRAMES, IMAGE_PAD, MERGE
from .settings import VisionSettings

IMAGE, KEY = "<image>", "tokenizer.ggml."
MARKED = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"
SMALLEST, LARGEST = 4, 16384  # rows of a picture: preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct
THEIRS = "transformers' processor of this family and Qwen2Tokenizer, made from the GGUF file's tokens and merges"


@dataclass(frozen=True, slots=True)
class Patches:
    """Pictures as the tower takes them, one after the other."""

    values: np.ndarray  # (n, 3 * frames * P * P) float32
    grids: np.ndarray  # (pictures, 3): frames, rows and columns of patches

    def inputs(self, ids: Sequence[int], image: int) -> dict[str, np.ndarray]:
        """Return what the module is given beside token ids (T,)."""
        return {"pixel_values": self.values, "image_grid_thw": self.grids}

    def pixels(self, P: int) -> list[np.ndarray]:
        """Return each picture's pixels (3, H, W). Raises AssertionError if its frames are not one picture."""
        counts = self.grids.prod(axis=1)
        split = np.split(self.values, np.cumsum(counts)[:-1])
        grids = self.grids.tolist()
        return [_picture(values, y, x, P) for values, (_, y, x) in zip(split, grids, strict=True)]


def _picture(values: np.ndarray, rows: int, columns: int, P: int) -> np.ndarray:
    blocks = values.reshape(rows // MERGE, columns // MERGE, MERGE, MERGE, 3, FRAMES, P, P)
    assert (blocks[:, :, :, :, :, 0] == blocks[:, :, :, :, :, 1]).all()
    placed = blocks[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6)  # colour, then y from outside in, then x
    return np.ascontiguousarray(placed.reshape(3, rows * P, columns * P))


def token_ids(model: HfModel, prompt: str, pictures: Sequence[Image.Image]) -> list[int]:
    """Return the ids of a prompt with `<image>` for each picture, the image token as often as a picture has rows."""
    tokenizer, string = qwen_tokenizer(model.text_file), prompt.replace(IMAGE, MARKED)
    if model.vision is None or not pictures:
        return list(tokenizer(string)["input_ids"])
    if model.image_token >= model.n_vocab:
        raise ReferenceError(model.text_file.path, KEY + "tokens", f"has no {IMAGE_PAD}, the processor's image token")
    hf = transformers()
    kind = hf.Qwen2VLProcessor if model.family == "qwen2vl" else hf.Qwen2_5_VLProcessor
    processor = without_films(kind)(image_processor(model.vision), tokenizer)
    return list(processor(images=list(pictures), text=[string])["input_ids"][0])


def without_films(kind: Any) -> Any:
    """Return a class of processors that does without one of films: transformers' own needs torchvision."""
    checked = kind.check_argument_for_proper_class

    def check(processor: Any, name: str, argument: Any) -> Any:
        return None if name == "video_processor" else checked(processor, name, argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


def image_processor(c: VisionSettings) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    P = c.config["patch_size"]
    area = (MERGE * P) ** 2
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": SMALLEST * area, "longest_edge": LARGEST * area},  # pixels, whatever their names say
        patch_size=P,
        merge_size=MERGE,
        temporal_patch_size=FRAMES,
        image_mean=list(c.mean),
        image_std=list(c.std),
    )


def preprocess(pictures: Sequence[Image.Image], c: VisionSettings) -> tuple[Patches, list[np.ndarray]]:
    """Return the patches, and each picture before scaling and normalising (H, W, 3) uint8."""
    processor = image_processor(c)
    made = processor(list(pictures), return_tensors="np")
    plain = processor(list(pictures), do_rescale=False, do_normalize=False, return_tensors="np")
    seen = Patches(plain["pixel_values"], plain["image_grid_thw"]).pixels(c.config["patch_size"])
    patches = Patches(made["pixel_values"].astype(np.float32), made["image_grid_thw"])
    return patches, [np.ascontiguousarray(picture.transpose(1, 2, 0)).astype(np.uint8) for picture in seen]


def grids(sizes: Sequence[tuple[int, int]], c: VisionSettings) -> list[tuple[int, int]]:
    """Return rows and columns that the processor makes of pictures of these widths and heights, nothing resized."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    f, p = MERGE * c.config["patch_size"], image_processor(c)
    limits = p.size["shortest_edge"], p.size["longest_edge"]
    return [tuple(side // f for side in smart_resize(height, width, f, *limits)) for width, height in sizes]


def qwen_tokenizer(file: GGUFFile) -> Any:
    """Make transformers' Qwen2Tokenizer, which has its own rule for cutting text.

    Raises ReferenceError for a file that names another rule."""
    from transformers import AddedToken, Qwen2Tokenizer

    if (rule := file.string(KEY + "pre", "")) != "qwen2":
        raise ReferenceError(file.path, KEY + "pre", f"{rule!r}, and transformers' Qwen2Tokenizer cuts text as 'qwen2'")
    texts, kinds = file.array(KEY + "tokens", "string"), file.array(KEY + "token_type", "int")
    merges: Any = [tuple(merge.split(" ", 1)) for merge in file.array(KEY + "merges", "string")]
    tokenizer: Any = Qwen2Tokenizer({text: i for i, text in enumerate(texts)}, merges)
    for text, kind in zip(texts, kinds, strict=True):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(text, special=kind != USER_DEFINED, normalized=False)])
    return tokenizer
