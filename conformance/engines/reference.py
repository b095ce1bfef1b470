"""Another engine, asked to run one prompt and to show what it computed.

Stages come under this project's names (`llava_ref.models.stages`), shapes and order, as float32 (pictures uint8).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from llava_ref.errors import LlavaError


class ReferenceError(LlavaError):
    """The other engine is not installed, refused, crashed, or took too long."""


@dataclass(frozen=True, slots=True)
class Case:
    """What to run."""

    text: Path
    mmproj: Path | None
    images: tuple[Path, ...]
    prompt: str
    """As rendered: `<image>` where a picture goes; control tokens in it count; BOS as the tokenizer says."""
    orders: Mapping[str, str] = field(default_factory=dict)
    """The same conversation as rendered for each value of the quirk `image_order`; empty for a raw prompt."""

    def rendered(self, order: str) -> str:
        """Return the prompt of an engine that puts pictures in this order."""
        return self.orders.get(order, self.prompt)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of it."""

    name: str
    """The engine, its version, its settings."""
    about: Mapping[str, str]
    """`arithmetic`: "float32" or "ggml"; `attention`: "float32" or "float16"; and whatever else there is to say."""
    stages: Mapping[str, np.ndarray]
    token_ids: tuple[int, ...]
    """-1 where a picture stands."""
    greedy: tuple[int, ...]
    """The likeliest tokens after the prompt, one after the other."""
    rounded: Mapping[str, str] = field(default_factory=dict)
    """The stages that were not kept as float32, with the type: F16 or BF16."""
    chosen: bool = False
    """Whether somebody chose which stages to keep, so that one may be absent and still have been computed."""


class Reference(Protocol):
    """An engine with its settings."""

    @property
    def name(self) -> str: ...

    def run(self, case: Case, *, n_greedy: int = 0) -> Run:
        """ReferenceError for anything that the other engine does instead of answering."""
        ...
