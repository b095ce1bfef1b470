"""Define what a family of models provides: a tower with its projector, a decoder, and a picture's place between them.

N rows of a picture, D decoder width, T positions, V vocabulary, S the tower's picture size in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ..gguf.file import GGUFFile
from ..images.fit import Preprocessed
from ..ops.protocol import Array, Cache, Ops
from ..ops.sees import Sees
from ..ops.step import StepPlan
from ..profiles import Quirks
from ..tracing.finite import RefuseNotFinite
from ..tracing.trace import Probes, Tap, no_tap
from .config import TextConfig, VisionConfig
from .stages import Stage


@dataclass(frozen=True, slots=True)
class Span:
    """A picture's place in the sequence, known from its size alone: nothing is decoded or run for it."""

    grid: tuple[int, int]  # rows and columns of the positions that stand for squares of the picture, first to last
    n_rows: int  # positions in all
    before: str = ""  # text of control tokens in front of the rows
    after: str = ""  # and behind them


class Tower(Protocol):
    """A vision tower with its projector."""

    ORIGINAL: ClassVar[str]
    """The profile that does what the family's original code does."""
    MARKERS: ClassVar[tuple[str, ...]]
    """Control tokens that stand beside a picture."""
    OUTPUT: ClassVar[tuple[str, int]]
    """The last matrix, and the axis of its shape in the file that is as long as the decoder is wide."""

    @property
    def file(self) -> GGUFFile: ...

    @property
    def config(self) -> VisionConfig: ...

    @property
    def ops(self) -> Ops: ...

    @property
    def width(self) -> int:
        """Return the width of the rows, which is the decoder's."""
        ...

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "Tower":
        """Check everything that the file says and take its tensors; none is converted. Raises GGUFError."""
        ...

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        """Return what the metadata means for a picture, as JSON; tensors need not be there. Raises GGUFError."""
        ...

    def span(self, width: int, height: int) -> Span: ...

    def preprocess(self, rgb: np.ndarray, tap: Tap = no_tap) -> Preprocessed:
        """Return the pixels that `encode` takes.  (height, width, 3) uint8 -> pixels (1, 3, S, S)"""
        ...

    def encode(self, pixels: Array, tap: Tap = no_tap) -> Array:
        """Return the rows that stand in for a picture.  pixels (1, 3, S, S) -> (N, D)"""
        ...

    def stages(self) -> tuple[Stage, ...]: ...


class TextModel(Protocol):
    """A decoder: token ids and rows of pictures -> logits."""

    ORIGINAL: ClassVar[str]
    """The profile that does what the family's original code does."""
    WHOLE_PICTURES: ClassVar[bool]
    """Whether the rows of a picture see one another, so that they must be run at once."""

    @property
    def file(self) -> GGUFFile: ...

    @property
    def config(self) -> TextConfig: ...

    @property
    def ops(self) -> Ops: ...

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "TextModel":
        """Check everything that the file says and take its tensors; none is converted. Raises GGUFError."""
        ...

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        """Return what the metadata means, as JSON; tensors need not be there. Raises GGUFError."""
        ...

    def embed(self, ids: Sequence[int]) -> Array:
        """Return the rows that go in for tokens.  T ids -> (T, D)"""
        ...

    def forward(self, x: Array, sees: Sees, cache: Cache, ops: Ops, tap: Tap = no_tap) -> Array:
        """Run rows at the next T positions, whose keys and values are then in the cache.  (T, D) -> (T, D)"""
        ...

    def logits(self, x: Array, ops: Ops, tap: Tap = no_tap) -> Array:
        """Return the logits of hidden states.  (T, D) -> (T, V)"""
        ...

    def step_plan(self) -> StepPlan:
        """Describe `forward` and `logits` as data, for a backend that runs one token through all layers at once."""
        ...

    def stages(self) -> tuple[Stage, ...]: ...


def encode(tower: Tower, pixels: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """Return the rows that stand in for a picture, on the host.  pixels (1, 3, S, S) -> (N, D) float32

    Raises NumericsError for NaN or infinity, naming the first tensor to hold one."""
    ops = tower.ops
    with np.errstate(all="ignore"):  # bad numbers are found by `all_finite`, not by numpy's warnings
        rows = ops.replay(tower.encode, pixels) if tap is no_tap else tower.encode(ops.array(pixels), tap)
        if not ops.all_finite(rows):
            tower.encode(ops.array(pixels), Probes(RefuseNotFinite(ops, tower.file.path)).tap(tower))
    return ops.numpy(rows)
