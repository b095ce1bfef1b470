"""Idefics3's and SmolVLM's tower: SigLIP ViT, squares of patches side by side as one row, and one linear map.

N rows of a tile, n patches a side, s patches a side of one row's square, Dv tower width, D decoder width.
Laurençon et al. 2024, https://arxiv.org/abs/2408.12637; Marafioti et al. 2025, https://arxiv.org/abs/2504.05299,
section 2.2; tensor names and defaults of llama.cpp b11549, tools/mtmd/clip-impl.h, clip.cpp and models/siglip.cpp;
transformers 5.24, models/idefics3/modeling_idefics3.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..images import fit
from ..ops.protocol import Array, Linear, Ops
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import named_tiles, siglip, vit
from .config import VisionConfig
from .family import Span, prepared
from .named_tiles import NamedTiles
from .projectors import shuffle
from .siglip import MERGE, TowerWeights
from .stages import Stage, Table
from .weights import Weights


def _here(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """Return stages of SigLIP by the name that transformers' Idefics3 gives the tower."""
    return tuple(
        replace(stage, transformers=stage.transformers.replace("vision_tower", "vision_model")) for stage in stages
    )


TABLE = Table(
    "vision.blk",
    before=_here(siglip.TABLE.before),
    block=_here(vit.STAGES),
    behind=(
        *_here(siglip.TABLE.behind[:1]),
        Stage("projector.shuffle", "N s*s*Dv", "exact", None, "pixel_shuffle", "< connector.modality_projection"),
        Stage("projector.out", "N D", "matmul", "mm.model.fc.weight", "node (MUL_MAT), the last", "connector"),
    ),
)


@dataclass(frozen=True, slots=True)
class Idefics3Weights:
    tower: TowerWeights
    projection: Linear  # (D, s*s*Dv)


def read(file: GGUFFile, quirks: Quirks) -> tuple[VisionConfig, NamedTiles, int]:
    """Return the tower's settings, how a picture is cut into tiles, and the patches along one side of a row's square.

    Raises GGUFError."""
    c, merge = siglip.read(file, obeyed=[named_tiles.LONGEST], default=None)
    if merge < 2:
        raise GGUFError(file.path, MERGE, f"{merge}, expected 2 or more")
    return c, named_tiles.read(file, c, quirks, c.grid // merge), merge


def load(file: GGUFFile, ops: Ops, c: VisionConfig, merge: int) -> Idefics3Weights:
    """Take the tensors. Raises GGUFError for what is missing, has the wrong shape, or has no use."""
    w = Weights(file, ops)
    out, _ = w.matrix_shape("mm.model.fc.weight")
    weights = Idefics3Weights(
        tower=siglip.load_tower(file, w, c),
        projection=Linear(w.matrix("mm.model.fc.weight", (out, merge**2 * c.width))),
    )
    w.finish()
    return weights


def project(x: Array, w: Idefics3Weights, c: VisionConfig, merge: int, ops: Ops, tap: Tap = no_tap) -> Array:
    """Map features to rows that stand among the decoder's embeddings.  (n * n, Dv) -> (N, D)"""
    tap = scoped(tap, "projector")
    x = tap("shuffle", shuffle(x, c.grid, merge))  # (N, s*s*Dv)
    return tap("out", ops.linear(x, w.projection))


@dataclass(frozen=True, slots=True)
class Idefics3:
    """The tower and its projector: `family.Tower`."""

    ORIGINAL: ClassVar[str] = "hf"
    MARKERS: ClassVar[tuple[str, ...]] = (named_tiles.START, named_tiles.OVERVIEW, named_tiles.FIRST)
    replays: ClassVar[bool] = False  # the order of patches is made on the host
    file: GGUFFile
    config: VisionConfig
    tiles: NamedTiles
    merge: int
    weights: Idefics3Weights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "Idefics3":
        config, tiles, merge = read(file, quirks)
        return cls(file, config, tiles, merge, load(file, ops, config, merge), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        c, tiles, merge = read(file, quirks)
        side = c.image_size
        return {
            **c.about(),
            "tokens_per_image": tiles.n_tiles(side, side) * tiles.m**2,
            "merge": merge,
            **tiles.about(quirks),
            "blocks_run": c.n_stored,
            "activation": siglip.activation(c),
        }

    @property
    def width(self) -> int:
        return self.weights.projection.weight.shape[0]

    @classmethod
    def output(cls, file: GGUFFile) -> tuple[str, int]:
        return "mm.model.fc.weight", 0

    def span(self, width: int, height: int) -> Span:
        return Span((self.tiles.m, self.tiles.m), tuple(self.tiles.stretches(width, height)))

    def preprocess(self, rgb: np.ndarray, tap: Tap = no_tap) -> fit.Preprocessed:
        rgb = tap("image.rgb", rgb)
        places = self.tiles.places(rgb.shape[1], rgb.shape[0])
        return prepared(rgb, self.tiles.fitted(rgb), places, self.config, tap)

    def encode(self, pixels: Array, tap: Tap = no_tap) -> Array:
        ops, w, c = self.ops, self.weights, self.config
        with ops.running(c.n_patches, c.width * c.mlp_width):
            features = siglip.encode(pixels[0], w.tower, c, ops, tap)
            return project(features, w, c, self.merge, ops, tap)

    def pack(self, rows: Array, width: int, height: int) -> Array:
        return rows

    def stages(self) -> tuple[Stage, ...]:
        return tuple(TABLE.run(self.config.n_stored))
