"""Prepare a prompt and its pictures with transformers' own Gemma3Processor.

Its tokenizer is made from the SPM vocabulary in the GGUF file. A file stores runs of blanks as user-defined tokens;
Gemma's tokenizer.json has them as pieces of "▁" that merge first (convert_slow_tokenizer.py, GemmaConverter).
n rows of a picture, S image size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from llava_ref.gguf.file import GGUFFile
from llava_ref.tokenizer.vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED

from ..reference import ReferenceError
from .model import HfModel, transformers
from .settings import VisionSettings

IMAGE, KEY = "<image>", "tokenizer.ggml."
MARKERS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
NAMED = {"bos": 2, "eos": 1, "unknown": 3, "padding": 0}  # and their ids if the file has no key
THEIRS = "transformers' Gemma3Processor and GemmaTokenizer, made from the GGUF file's pieces and scores"


def token_ids(model: HfModel, prompt: str, pictures: Sequence[Image.Image]) -> list[int]:
    """Return the ids of a prompt with `<image>` for each picture, the image token as often as a picture has rows.

    BOS comes first if the vocabulary asks for it, unless the prompt begins with it."""
    tokenizer = gemma_tokenizer(model.text_file)
    string = prompt.replace(IMAGE, MARKERS["boi_token"])
    bos = tokenizer.bos_token
    if tokenizer.add_bos_token and string.startswith(bos):
        string = string.removeprefix(bos)
    if model.vision is None or not pictures:
        return list(tokenizer(string)["input_ids"])
    for name, text in MARKERS.items():
        if text not in tokenizer.get_vocab():
            raise ReferenceError(model.text_file.path, KEY + "tokens", f"has no {text}, the processor's {name}")
    processor = transformers().Gemma3Processor(
        image_processor(model.vision), tokenizer, image_seq_length=model.vision.n_rows
    )
    return list(processor(images=[list(pictures)], text=[string])["input_ids"][0])


def image_processor(c: VisionSettings) -> Any:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return Gemma3ImageProcessorPil(
        size={"height": c.image_size, "width": c.image_size}, image_mean=list(c.mean), image_std=list(c.std)
    )


def preprocess(pictures: Sequence[Image.Image], c: VisionSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, 3, S, S) float32, and the same before scaling and normalising (n, S, S, 3) uint8."""
    processor = image_processor(c)
    plain = processor(list(pictures), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    pixels: np.ndarray = processor(list(pictures), return_tensors="np")["pixel_values"]
    return pixels.astype(np.float32), np.ascontiguousarray(plain.transpose(0, 2, 3, 1)).astype(np.uint8)


def gemma_tokenizer(file: GGUFFile) -> Any:
    """Make transformers' GemmaTokenizer from the file's pieces, scores, types and special ids."""
    from transformers import AddedToken, GemmaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    texts = file.array(KEY + "tokens", "string")
    kinds = file.array(KEY + "token_type", "int", [NORMAL] * len(texts))
    blank = [kind == USER_DEFINED and not text.strip(" ") for text, kind in zip(texts, kinds, strict=True)]
    pieces = [text.replace(" ", "▁") if run else text for text, run in zip(texts, blank, strict=True)]
    ids = {text: i for i, text in enumerate(pieces)}
    scores = {
        text: 1.0 if run else score
        for text, run, kind, score in zip(pieces, blank, kinds, file.array(KEY + "scores", "float"), strict=True)
        if run or kind == NORMAL
    }
    named = {name: texts[file.integer(f"{KEY}{name}_token_id", 0, len(texts) - 1, i)] for name, i in NAMED.items()}
    tokenizer: Any = GemmaTokenizer(
        vocab=ids,
        merges=generate_merges({text: ids[text] for text in scores}, scores),
        bos_token=named["bos"],
        eos_token=named["eos"],
        unk_token=named["unknown"],
        pad_token=named["padding"],
        add_bos_token=file.boolean(KEY + "add_bos_token", True),
        add_eos_token=file.boolean(KEY + "add_eos_token", False),
        extra_special_tokens={name: text for name, text in MARKERS.items() if text in ids},
    )
    for text, kind, run in zip(texts, kinds, blank, strict=True):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and not run:
            tokenizer.add_tokens([AddedToken(text, special=kind != USER_DEFINED, normalized=False)])
    return tokenizer
