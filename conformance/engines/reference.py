"""Define what an engine must provide to serve as a reference: one prompt's run with its stages.

Stages have this project's names (`llava_ref.models.stages`), shapes and order, as float32 (pictures uint8).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from llava_ref.errors import LlavaError


class ReferenceError(LlavaError):
    """Raised if the other engine is not installed, refuses, crashes, or takes too long."""


@dataclass(frozen=True, slots=True)
class Case:
    """Holds the files and the prompt to run."""

    text: Path
    mmproj: Path | None
    images: tuple[Path, ...]
    prompt: str
    """The rendered prompt: `<image>` at the place of a picture, control tokens as such, BOS left to the tokenizer."""
    orders: Mapping[str, str] = field(default_factory=dict)
    """The same conversation rendered for each value of the quirk `image_order`; empty for a raw prompt."""

    def rendered(self, order: str) -> str:
        """Return the prompt of an engine that puts pictures in this order."""
        return self.orders.get(order, self.prompt)


@dataclass(frozen=True, slots=True)
class Run:
    """Holds the results of a run."""

    name: str
    """The engine, its version and its settings."""
    about: Mapping[str, str]
    """`arithmetic`: "float32" or "ggml"; `attention`: "float32" or "float16"; and any other facts."""
    stages: Mapping[str, np.ndarray]
    token_ids: tuple[int, ...]
    """The prompt's token ids, -1 at a picture's positions."""
    greedy: tuple[int, ...]
    """The likeliest tokens after the prompt, one after the other."""
    rounded: Mapping[str, str] = field(default_factory=dict)
    """Stage -> type, F16 or BF16, of the stages that were not recorded as float32."""
    chosen: bool = False
    """Whether only a selection of stages was recorded, so that an absent one may have been computed."""


class Reference(Protocol):
    """Runs prompts with one engine and its settings."""

    @property
    def name(self) -> str: ...

    def run(self, case: Case, *, n_greedy: int = 0) -> Run:
        """Run a prompt and `n_greedy` tokens after it. Raises ReferenceError if the engine gives no answer."""
        ...
