"""Describe a golden bundle, and name what several have in common."""

from dataclasses import dataclass, replace

from ..pairs.gemma3 import Gemma3Spec, SiglipSpec
from ..pairs.mllama import MllamaVisionSpec
from ..pairs.pairs import TextSpec, VisionSpec
from ..pairs.pixtral import PixtralSpec
from ..pairs.qwen2vl import QwenTextSpec, QwenVisionSpec

EVERY_STAGE = ("*", "*kq_soft_max")
THINNED = (
    "vision.pixels", "vision.patch_embd", "vision.blk.*.layer_out", "projector.out", "embd", "blk.*.out", "result_*",
)  # fmt: skip
WORDS = ("what", "color", "is", "the", "red", "circle")
N_GREEDY = 6
ALIKE = ("llava", "hf", "llama.cpp")


@dataclass(frozen=True, slots=True)
class PictureSpec:
    """Describes a picture of a bundle. `bands`: 3, or 4 with transparency."""

    name: str
    height: int
    width: int
    bands: int = 3


@dataclass(frozen=True, slots=True)
class Bundle:
    """Describes everything that a bundle is made from."""

    name: str
    about: str
    text: TextSpec | Gemma3Spec | QwenTextSpec
    vision: VisionSpec | SiglipSpec | QwenVisionSpec | PixtralSpec | MllamaVisionSpec
    pictures: tuple[PictureSpec, ...]
    prompt: str
    profiles: tuple[str, ...]
    """The profiles that its numbers are valid for, all of which give the same."""
    stages: tuple[str, ...] = EVERY_STAGE
    seed: int = 0


TEXT = TextSpec(width=24, n_layer=2, n_head=4, n_head_kv=2, mlp_width=40, context=128, words=WORDS)
VISION = VisionSpec(width=20, n_block=2, n_head=2, mlp_width=36, image_size=15, patch_size=5, middle=28)
YARN = replace(TEXT, rope_scaling="yarn", rope_base=500.0, original_context=32)
WIDE, TALL = PictureSpec("wide.png", 27, 61), PictureSpec("tall.png", 53, 22)
TINY, OWN = PictureSpec("tiny.png", 2, 3), PictureSpec("own.png", 15, 15)
QUESTION = "what color<image>\nis red"
LLAVA, HF, LLAMA_CPP = ("llava",), ("hf",), ("llama.cpp",)
