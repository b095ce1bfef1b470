"""Define what a family of models provides: a tower with its projector, a decoder, and a picture's place between them.

N rows of a picture, D decoder width, T positions, V vocabulary, Y and X height and width of a tile in pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from ..gguf.file import GGUFFile
from ..images.fit import Fitted, Preprocessed, Tile, normalise
from ..ops.protocol import Array, Cache, Ops
from ..ops.sees import Sees
from ..ops.step import StepPlan
from ..profiles import Quirks
from ..tracing.finite import RefuseNotFinite
from ..tracing.trace import Probes, Tap, no_tap, of_tile
from .config import TextConfig, VisionConfig
from .looking import PictureStates
from .stages import Stage


@dataclass(frozen=True, slots=True)
class Span:
    """A picture's place in the sequence, known from its size alone: nothing is decoded or run for it."""

    grid: tuple[int, int]  # rows and columns of the squares of a tile that have a row of their own
    stretches: tuple[str | int, ...]  # in order: text of control tokens, or so many of the picture's rows
    n_seen: int | None = None
    """Where a picture is one token that layers look at: its states of tiles that are there, the first of all."""

    @property
    def n_rows(self) -> int:
        """Return the picture's rows in all stretches."""
        return sum(stretch for stretch in self.stretches if isinstance(stretch, int))


class Tower(Protocol):
    """A vision tower with its projector."""

    ORIGINAL: ClassVar[str]
    """Whose code profile `llava` follows: of `profiles.ORIGINALS`."""
    MARKERS: ClassVar[tuple[str, ...]]
    """Control tokens that stand beside a picture."""

    @property
    def file(self) -> GGUFFile: ...

    @property
    def config(self) -> VisionConfig: ...

    @property
    def ops(self) -> Ops: ...

    @property
    def replays(self) -> bool:
        """Return whether a device may record what `encode` launches: it makes no array on the host on the way."""
        ...

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

    @classmethod
    def output(cls, file: GGUFFile) -> tuple[str, int]:
        """Return the last matrix, and the axis of its shape in the file that is as long as the decoder is wide."""
        ...

    def span(self, width: int, height: int) -> Span: ...

    def preprocess(self, rgb: np.ndarray, tap: Tap = no_tap) -> Preprocessed:
        """Return the tiles that `encode` takes.  (height, width, 3) uint8 -> pixels (tiles, 3, Y, X)"""
        ...

    def encode(self, pixels: Array, tap: Tap = no_tap) -> Array:
        """Return the rows of one tile.  pixels (1, 3, Y, X) -> (N, D)"""
        ...

    def pack(self, rows: Array, width: int, height: int) -> Array:
        """Return the rows that stand in for a picture of this size, of those of its tiles, one tile after the other.

        Raises ParameterError where there are not as many as its tiles have."""
        ...

    def stages(self) -> tuple[Stage, ...]: ...


class TextModel(Protocol):
    """A decoder: token ids and rows of pictures -> logits."""

    ORIGINAL: ClassVar[str]
    """Whose code profile `llava` follows: of `profiles.ORIGINALS`."""
    WHOLE_PICTURES: ClassVar[bool]
    """Whether the rows of a picture see one another, so that they must be run at once."""
    GRID_POSITIONS: ClassVar[bool]
    """Whether rope turns the rows of a picture by their places in its grid: three positions each."""

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

    def forward(self, x: Array, sees: Sees, positions: np.ndarray, cache: Cache, ops: Ops, tap: Tap = no_tap) -> Array:
        """Run the next T rows, whose keys and values are then in the cache.  (T, D) -> (T, D)

        `positions`: what rope turns them by, (T,), or (T, 3) with `GRID_POSITIONS`."""
        ...

    def logits(self, x: Array, ops: Ops, tap: Tap = no_tap) -> Array:
        """Return the logits of hidden states.  (T, D) -> (T, V)"""
        ...

    def step_plan(self) -> StepPlan:
        """Describe `forward` and `logits` as data, for a backend that runs one token through all layers at once.

        That of a `LookingModel` is without pictures."""
        ...

    def stages(self) -> tuple[Stage, ...]: ...


@runtime_checkable
class LookingModel(TextModel, Protocol):
    """A decoder some of whose layers look at pictures: a picture is one token, its states stand beside the sequence."""

    @property
    def looks(self) -> Sequence[int]:
        """Return the numbers of those layers."""
        ...

    def cache(self, limit: int) -> Cache:
        """Begin an empty sequence of at most `limit` positions."""
        ...

    def look(self, picture: PictureStates, at: int, cache: Cache, tap: Tap = no_tap) -> None:
        """Add a picture whose token is at position `at` to what the rows of a sequence see."""
        ...

    def embed_picture(self) -> Array:
        """Return the row that goes in for a picture's token.  -> (1, D)"""
        ...


def original(halves: Iterable[type[TextModel] | type[Tower] | TextModel | Tower]) -> str:
    """Return whose code profile `llava` follows for a pair: of `profiles.ORIGINALS`.

    LLaVA's own code knows LLaVA only; the original code of most newer families is transformers."""
    return next((half.ORIGINAL for half in halves if half.ORIGINAL != "llava"), "llava")


def prepared(
    rgb: np.ndarray, fitted: Sequence[Fitted], rows: np.ndarray, c: VisionConfig, tap: Tap = no_tap
) -> Preprocessed:
    """Normalise a picture's tiles.  (h, w, 3) uint8, (Y, X, 3) uint8 each, rows (tiles, gy, gx) -> (tiles, 3, Y, X)"""
    seen = [of_tile(tap, i)("image.seen", tile) for i, (tile, _) in enumerate(fitted)]
    tiles = tuple(Tile(x, affine, r) for x, (_, affine), r in zip(seen, fitted, rows, strict=True))
    pixels = np.concatenate([normalise(x, c.mean, c.std) for x in seen])
    return Preprocessed(pixels, tiles, (rgb.shape[1], rgb.shape[0]))


def encode(tower: Tower, pixels: np.ndarray, size: tuple[int, int] = (1, 1), tap: Tap = no_tap) -> np.ndarray:
    """Return the rows that stand in for a picture, on the host.  pixels (tiles, 3, Y, X) -> (N, D) float32

    `size`: width and height of the source, which say how tiles are put together. Raises NumericsError for NaN or
    infinity, naming the first tensor to hold one."""
    return tower.ops.numpy(encode_on_device(tower, pixels, size, tap))


def encode_on_device(tower: Tower, pixels: np.ndarray, size: tuple[int, int], tap: Tap) -> Array:
    """Return the same as the backend's array."""
    ops = tower.ops
    with np.errstate(all="ignore"):  # bad numbers are found by `all_finite`, not by numpy's warnings
        if tap is no_tap and tower.replays:
            found = ops.concat([ops.replay(tower.encode, tile[None]) for tile in pixels])
        else:
            found = _watched(tower, pixels, tap)
        if not ops.all_finite(found):
            _watched(tower, pixels, Probes(RefuseNotFinite(ops, None, tower.file.path)).tap(tower))
        return tower.pack(found, *size)


def _watched(tower: Tower, pixels: np.ndarray, tap: Tap) -> Array:
    tiles = [tower.encode(tower.ops.array(tile[None]), of_tile(tap, i)) for i, tile in enumerate(pixels)]
    return tower.ops.concat(tiles)
