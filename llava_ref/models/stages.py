"""Name the stages of a run, in order, and say what the same array is called elsewhere.

A family's tables stand beside the pass that they name. Letters: S picture size, N patches, T positions (of the tower or
of the sequence), Dv, Fv width and MLP width of the tower, Hv its heads, M middle of the projector, D, F those of the
decoder, H, Hkv, dh its heads, V vocabulary. llama.cpp: names its evaluation callback gives (b10605), `node` where it
has none; names repeat, so the operation stands behind them. transformers: module of the conditional-generation class
(5.x) whose output it is, `<` for its input.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..html import columns, table

Kind = Literal["exact", "matmul", "float", "table", "attention"]
"""The arithmetic: none (must be equal), a product with a stored matrix, float32 steps, an activation that ggml reads
from a table of float16, attention."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One named array. `{i}` in a name stands for the block."""

    name: str
    shape: str
    kind: Kind
    weight: str | None = None
    """The tensor whose type says how accurate the stage can be, where one does."""
    llama_cpp: str = ""
    transformers: str = ""


class Stages(tuple[Stage, ...]):
    """The stages of a run, in order; shown as a table."""

    HEAD = ("stage", "shape", "arithmetic", "weights", "llama.cpp", "transformers")

    def __repr__(self) -> str:
        return columns([self.HEAD, *self._rows()]) if self else "Stages()"

    def _repr_html_(self) -> str:
        return table(self.HEAD, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        return [(s.name, s.shape.replace(" ", ", "), s.kind, s.weight or "", s.llama_cpp, s.transformers) for s in self]


@dataclass(frozen=True, slots=True)
class Table:
    """The stages of one network: before its blocks, in each, and behind them."""

    prefix: str  # of a block's stages: "vision.blk" or "blk"
    before: tuple[Stage, ...]
    block: tuple[Stage, ...]
    behind: tuple[Stage, ...]

    def run(self, n_layer: int, absent: Collection[str] = ()) -> Iterator[Stage]:
        """Yield the stages of a network of `n_layer` blocks, less those whose names are `absent`."""
        yield from (stage for stage in self.before if stage.name not in absent)
        for i in range(n_layer):
            yield from (numbered(stage, self.prefix, i) for stage in self.block)
        yield from (stage for stage in self.behind if stage.name not in absent)

    def rows(self) -> Iterator[tuple[str, Stage]]:
        """Yield each row with its full name, `{i}` for the block."""
        yield from ((stage.name, stage) for stage in self.before)
        yield from ((f"{self.prefix}.{{i}}.{stage.name}", stage) for stage in self.block)
        yield from ((stage.name, stage) for stage in self.behind)


IMAGE = (
    Stage("image.rgb", "H W 3", "exact"),
    Stage("image.seen", "S S 3", "exact"),
    Stage("vision.pixels", "3 S S", "exact", llama_cpp="node (source of IM2COL)", transformers="< vision_tower"),
)


def residual(blocks: Iterable[int]) -> list[str]:
    """Return the residual stream of the decoder: the rows that go in, and the output of each of these blocks."""
    return ["embd", *(f"blk.{i}.out" for i in blocks)]


def of_picture(name: str) -> bool:
    """Say whether a stage is of a picture, and not of the sequence."""
    return name.startswith(("image.", "vision.", "projector."))


def numbered(stage: Stage, prefix: str, i: int) -> Stage:
    """Return a block's row for block `i`."""
    return replace(
        stage,
        name=f"{prefix}.{i}.{stage.name}",
        weight=stage.weight and stage.weight.replace("{i}", str(i)),
        llama_cpp=stage.llama_cpp.replace("{i}", str(i)),
        transformers=stage.transformers.replace("{i}", str(i)),
    )
