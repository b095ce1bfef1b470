"""Tell how far a forward pass has come: a probe that counts the blocks of a tower and the layers of a decoder."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..ops.protocol import Array
from .trace import At, Probe

BLOCK = re.compile(r"(.+?\.[0-9]+)\.")
SOURCE, TILE = "image.rgb", "image.seen"  # stages: a picture begins; the tower will be given one more tile of it


@dataclass(frozen=True, slots=True)
class Blocks:
    """Names the arrays that blocks end with."""

    tower: frozenset[str]
    layers: Mapping[str, int]
    """Of the decoder: name -> the layers that have been run with it, from 1."""

    @classmethod
    def of(cls, stages: Iterable[str]) -> "Blocks":
        """Find the blocks of a model among the names of its stages, in order (`Llava.stages`)."""
        ends = {found[1]: name for name in stages if (found := BLOCK.match(name))}
        layers = [end for block, end in ends.items() if block.startswith("blk.")]
        return cls(frozenset(ends.values()) - set(layers), {name: i for i, name in enumerate(layers, 1)})


@dataclass(frozen=True, slots=True)
class PictureProgress:
    """Says how many blocks of the tower have been run for a picture, over all its tiles."""

    picture: int
    """Counted from 0, over the pictures that were computed since the probe was attached."""
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """Says how many layers of the decoder have been run for the positions that are run at once."""

    positions: range
    done: int
    total: int

    @property
    def position(self) -> int:
        """Return the positions of the sequence that the work so far amounts to."""
        return self.positions.start + len(self.positions) * self.done // self.total


class Progress(Probe):
    """Calls `report` behind each block. It changes nothing, and asks for no array that would not be computed.

    A token that a backend's stepper runs shows no arrays, so it is not reported."""

    complete = False

    def __init__(self, blocks: Blocks, report: Callable[[PictureProgress | PromptProgress], None]) -> None:
        super().__init__((SOURCE, TILE, *blocks.tower, *blocks.layers))
        self._names = frozenset(self.globs)
        self._blocks, self._report = blocks, report
        self._picture, self._tiles, self._done = -1, 0, 0

    def wants(self, name: str) -> bool:
        return name in self._names

    def see(self, x: Array, at: At) -> Array:
        if at.name == SOURCE:
            self._picture, self._tiles, self._done = self._picture + 1, 0, 0
        elif at.name == TILE:
            self._tiles += 1
        elif at.name in self._blocks.tower:
            self._done += 1
            total = max(self._tiles, 1) * len(self._blocks.tower)
            self._report(PictureProgress(max(self._picture, 0), self._done, max(total, self._done)))
        elif at.positions is not None:
            self._report(PromptProgress(at.positions, self._blocks.layers[at.name], len(self._blocks.layers)))
        return x
