"""Hold a model of transformers with the weights of a GGUF pair, ready to run.

T positions, S image size, N rows of a picture, D decoder width, V vocabulary.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import Any, Literal

import numpy as np
import torch

from llava_ref.gguf.file import GGUFFile

from ..reference import ReferenceError
from .settings import VisionSettings

Sizes = Sequence[tuple[int, int]]
Family = Literal[
    "llava", "llava_next", "gemma3", "qwen2vl", "qwen2_5_vl", "idefics3", "internvl", "pixtral", "mistral3", "mllama"
]


@dataclass(frozen=True, slots=True)
class HfModel:
    """A module of transformers, and the facts that are needed to ask it."""

    module: Any  # a ...ForConditionalGeneration, or a ...ForCausalLM without a tower
    family: Family
    text_file: GGUFFile
    n_vocab: int
    image_token: int
    """The id that stands for an image row."""
    vision: VisionSettings | None
    passed: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the pass that runs was given beside its token ids."""

    @property
    def decoder(self) -> Any:
        if self.vision is None:
            return self.module.model
        return self.module.model.text_model if self.family == "idefics3" else self.module.model.language_model

    def _takes(self, parameter: str) -> bool:
        return parameter in signature(self.module.forward).parameters

    @property
    def _cache(self) -> str:
        """Return the name of the parameter for keys and values: transformers 5.24 changed it."""
        return "cache" if self._takes("cache") else "past_key_values"

    @torch.no_grad()
    def forward(self, ids: Sequence[int], pixels: Any, sizes: Sizes = ()) -> Any:
        """Run token ids (T,) and pictures -> transformers' output, with logits (1, T, V) and a cache. Pictures: n tiles
        (n, 3, S, S), an object with `inputs`, or None. `sizes`: width and height of each picture."""
        tokens = torch.tensor([list(ids)])
        extra = {} if pixels is None else self._pictures(pixels, ids)
        if pixels is not None and self.family == "llava_next":  # height and width
            extra["image_sizes"] = torch.tensor([[height, width] for width, height in sizes])
        if self._takes("token_type_ids"):  # Gemma 3: rows of one picture see one another
            extra["token_type_ids"] = (tokens == self.image_token).long()
        if pixels is not None and self._takes("mm_token_type_ids"):  # Qwen: a picture's rows have positions of its grid
            extra["mm_token_type_ids"] = (tokens == self.image_token).int()
        self.passed.clear()
        self.passed.update(extra)
        return self.module(input_ids=tokens, use_cache=True, **extra)

    def _pictures(self, pixels: Any, ids: Sequence[int]) -> dict[str, torch.Tensor]:
        if isinstance(pixels, np.ndarray):
            return {"pixel_values": self._pixels(pixels)}
        return {name: torch.from_numpy(array) for name, array in pixels.inputs(ids, self.image_token).items()}

    @torch.no_grad()
    def image_rows(self, pixels: np.ndarray) -> np.ndarray:
        """Encode pictures (n, 3, S, S) -> the rows that stand for them (n, N, D)."""
        rows: torch.Tensor = self.module.get_image_features(self._pixels(pixels)).pooler_output
        return rows.numpy()

    def _pixels(self, pixels: np.ndarray) -> torch.Tensor:
        """Return pictures as the module takes them: Idefics3 has all tiles of a prompt on an axis of their own."""
        return torch.from_numpy(pixels)[None] if self.family == "idefics3" else torch.from_numpy(pixels)

    @torch.no_grad()
    def greedy(self, output: Any, count: int) -> tuple[int, ...]:
        """Return the `count` likeliest tokens after `output`, one by one. No token ends them."""
        tokens: list[int] = []
        seen = self.passed.get("cross_attention_mask")
        extra = {} if seen is None else {"cross_attention_mask": seen[:, -1:]}  # as `generate` goes on
        for _ in range(count):
            if tokens:
                last = torch.tensor([tokens[-1:]])
                output = self.module(input_ids=last, use_cache=True, **{self._cache: output[self._cache]}, **extra)
            tokens.append(int(output.logits[0, -1, : self.n_vocab].argmax()))
        return tuple(tokens)


def transformers() -> Any:
    """Import the package, offline and without its advice on settings."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # both are read when it is imported
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return import_module("transformers")


def refuse(file: GGUFFile, field: str, problem: str) -> ReferenceError:
    return ReferenceError(file.path, field, f"{problem}: transformers' model has no place for it")
