"""Run transformers as a reference: a family's own class in float32, with the weights of the GGUF pair.

S image size, T positions, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from llava_ref.errors import LlavaError

from ..reference import Case, ReferenceError, Run
from ..stages import check_pictures, ordered
from . import tiny as reference_hf
from .settings import VisionSettings

ABOUT = {
    "arithmetic": "float32",
    "attention": "float32",
    "weights": "from the GGUF files, dequantised",
    "Qcur_rope, Kcur_rope": "the model's own apply_rotary_pos_emb and angles, applied to its projections once more",
}
QWEN = "Qwen2VLImageProcessorPil: stretched to whole blocks, 4 to 16384 of them, mean and deviation of the file"
PIXTRAL = "PixtralImageProcessorPil: stretched to whole squares, mean and deviation of the file"
PROCESSORS = {
    "llava": "CLIPImageProcessorPil: shortest side, centre crop, mean and deviation of the file",
    "llava_next": "LlavaNextImageProcessorPil: overview and tiles, mean and deviation of the file",
    "idefics3": "Idefics3ImageProcessorPil: tiles and overview, Lanczos, mean and deviation of the file",
    "internvl": "GotOcr2ImageProcessorPil, cropping: tiles and overview, mean and deviation of the file",
    "gemma3": "Gemma3ImageProcessorPil: stretched to a square, no pan and scan, mean and deviation of the file",
    "pixtral": PIXTRAL,
    "mistral3": PIXTRAL,
    "mllama": "MllamaImageProcessorPil: upper left on a canvas of tiles, CLIP's mean and deviation",
    "qwen2vl": QWEN,
    "qwen2_5_vl": QWEN,
}

PROMPTS = {  # LLaVA's are prepared here
    "gemma3": "gemma3_prompt",
    "idefics3": "idefics3_prompt",
    "internvl": "internvl_prompt",
    "llava_next": "llava_next",
    "mistral3": "pixtral_prompt",
    "mllama": "mllama_prompt",
    "pixtral": "pixtral_prompt",
    "qwen2vl": "qwen2vl_prompt",
    "qwen2_5_vl": "qwen2vl_prompt",
}


class Transformers:
    """Run transformers on the CPU with eager attention. `stages`: patterns of the stages to keep; attention weights
    only if a pattern names `kq_soft_max`."""

    def __init__(self, *, stages: Sequence[str] = ("*",)) -> None:
        self.stages = tuple(stages)
        self.name = f"transformers {_version()} float32"

    def run(self, case: Case, *, n_greedy: int = 0) -> Run:
        """Run a case. Raises ReferenceError for anything but an answer."""
        check_pictures(case)
        if (reason := reference_hf.missing()) is not None:
            raise ReferenceError("transformers", "package", reason)
        try:
            return self._run(case, n_greedy)
        except ReferenceError:
            raise
        except LlavaError as error:
            raise ReferenceError(error.where, error.field, error.problem) from None
        except Exception as error:  # whatever transformers, torch or Pillow think of this case
            raise ReferenceError(self.name, type(error).__name__, str(error)) from error

    def _run(self, case: Case, n_greedy: int) -> Run:
        from . import from_gguf as hf_from_gguf  # they need transformers
        from . import stages as hf_stages

        model = hf_from_gguf.load(case.text, case.mmproj)
        pictures = [_open(path) for path in case.images]
        ids, tokenizer = _token_ids(model, case.rendered("template"), pictures)
        if not ids:
            raise ReferenceError("prompt", "tokens", "there are none")
        with hf_stages.HfWatch(model, self.stages) as watch:
            pixels = None
            if model.vision is not None and pictures:
                pixels, seen = _pixels(model, pictures)
                for name, arrays in (("image.rgb", map(np.asarray, pictures)), ("image.seen", seen)):
                    for i, array in enumerate(arrays):
                        watch.add(f"{name}#{i}" if i else name, array)
            output = model.forward(ids, pixels, [picture.size for picture in pictures])
        greedy = model.greedy(output, n_greedy)
        shown = tuple(-1 if token == model.image_token else token for token in ids)
        about = {**ABOUT, "pictures": PROCESSORS[model.family], "token ids": tokenizer}
        return Run(self.name, about, ordered(watch.arrays), shown, greedy)


def _prompts(family: str) -> Any:
    """Return the module that prepares a family's prompts and pictures."""
    return import_module(f".{PROMPTS[family]}", __package__)  # it needs transformers


def _token_ids(model: Any, prompt: str, pictures: Sequence[Image.Image]) -> tuple[list[int], str]:
    """Return the ids of a prompt, and whose tokenizer made them."""
    if model.family not in ("llava", "llava_next"):
        theirs = _prompts(model.family)
        return theirs.token_ids(model, prompt, pictures), theirs.THEIRS
    from . import llava_next, vocabulary

    n_rows = [model.vision.n_rows] * len(pictures) if model.vision else []
    if model.family == "llava_next":
        n_rows = llava_next.n_rows([picture.size for picture in pictures], model.vision)
    return vocabulary.token_ids(model.text_file, prompt, model.image_token, n_rows)


def _pixels(model: Any, pictures: Sequence[Image.Image]) -> tuple[Any, Iterable[np.ndarray]]:
    """Return what the module is given, (n, 3, S, S) or an object with `inputs`, and the pictures before normalising."""
    way = _prompts(model.family).preprocess if model.family in PROMPTS else preprocess
    found: tuple[Any, Iterable[np.ndarray]] = way(pictures, model.vision)
    return found


def _version() -> str:
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "not installed"


def _open(path: Path) -> Image.Image:
    """Open a picture: upright, as transformers' `load_image` turns it, and transparency over white, as its processors
    read a PIL image. (`load_image` itself drops an alpha channel.)"""
    from transformers.image_transforms import convert_to_rgb

    with Image.open(path) as picture:
        rgb: Any = convert_to_rgb(ImageOps.exif_transpose(picture), return_numpy=True)
        return Image.fromarray(rgb)


def preprocess(pictures: Sequence[Image.Image], c: VisionSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return CLIP's pixels (n, 3, S, S) float32, and the same before scaling and normalising (n, S, S, 3) uint8."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor: Any = CLIPImageProcessorPil(
        size={"shortest_edge": c.image_size},
        crop_size={"height": c.image_size, "width": c.image_size},
        image_mean=list(c.mean),
        image_std=list(c.std),
    )
    plain = processor(list(pictures), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    pixels: np.ndarray = processor(list(pictures), return_tensors="np")["pixel_values"]
    return pixels.astype(np.float32), np.ascontiguousarray(plain.transpose(0, 2, 3, 1)).astype(np.uint8)
