"""Gemma 3's tower: SigLIP ViT, the average of squares of patches, and one linear map.

N rows of a picture, n patches a side, m patches a side of one row's square, Dv tower width, D decoder width.
Zhai et al. 2023, https://arxiv.org/abs/2303.15343; Gemma 3 report, https://arxiv.org/abs/2503.19786, section 2; tensor
names and defaults of llama.cpp b11549, tools/mtmd/clip-impl.h and clip.cpp; transformers 5.24,
models/gemma3/modeling_gemma3.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..images import fit
from ..images.resample import BILINEAR
from ..ops.protocol import Activation, Array, Linear, Norm, Ops
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import vit
from .config import VisionConfig, read_vision
from .family import Span, prepared
from .projectors import pool
from .stages import IMAGE, Stage, Table
from .vit import VitBlock
from .weights import Weights

MERGE = "clip.vision.projector.scale_factor"
BLACK = (0, 0, 0)
TABLE = Table(
    "vision.blk",
    before=(
        *IMAGE,
        Stage("vision.patch_embd", "n*n Dv", "matmul", "v.patch_embd.weight", "node (MUL_MAT)",
              "vision_tower.embeddings.patch_embedding"),
        Stage("vision.pos_embd", "n*n Dv", "float", None, "pos_embed (ADD)", "vision_tower.embeddings"),
    ),
    block=vit.STAGES,
    behind=(
        Stage("vision.post_ln", "n*n Dv", "float", None, "norm_b (ADD)", "vision_tower.post_layernorm"),
        Stage("projector.pool", "N Dv", "float", None, "node (POOL_2D)", "multi_modal_projector.avg_pool"),
        Stage("projector.soft_emb_norm", "N Dv", "float", None, "node (MUL)", "multi_modal_projector.mm_soft_emb_norm"),
        Stage("projector.out", "N D", "matmul", "mm.input_projection.weight", "node (MUL_MAT), the last",
              "multi_modal_projector"),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TowerWeights:
    """What every SigLIP tower has, whatever its projector."""

    patch: Linear  # (Dv, 3, P, P)
    position: Array  # (n * n, Dv)
    blocks: tuple[VitBlock, ...]
    post_ln: Norm


@dataclass(frozen=True, slots=True)
class SiglipWeights:
    tower: TowerWeights
    soft_emb_norm: Array  # (Dv,)
    projection: Linear  # (D, Dv), stored the other way round


def activation(c: VisionConfig) -> Activation:
    """Return the tower's activation. Its GELU is the approximation by tanh in llama.cpp and in transformers."""
    return "gelu_tanh" if c.activation == "gelu" else c.activation


def read(file: GGUFFile, obeyed: Sequence[str] = (), default: int | None = 4) -> tuple[VisionConfig, int]:
    """Return the tower's settings, and the patches along one side of a row's square, where a key says or by default.

    `obeyed`: further keys that a family reads itself. Raises GGUFError."""
    c = read_vision(file, obeyed=[MERGE, *obeyed])
    merge = file.integer(MERGE, 1, 64) if default is None else file.integer(MERGE, 1, 64, default)
    if c.grid % merge:
        raise GGUFError(file.path, MERGE, f"{merge} does not divide the {c.grid} patches of a side")
    if c.feature_layer not in (None, c.n_stored):
        raise GGUFError(file.path, "clip.vision.feature_layer", f"{c.feature_layer}, expected no such key")
    return c, merge


def load(file: GGUFFile, ops: Ops, c: VisionConfig) -> SiglipWeights:
    """Take the tensors. Raises GGUFError for what is missing, has the wrong shape, or has no use."""
    D, w = c.width, Weights(file, ops)
    _, out = w.matrix_shape("mm.input_projection.weight")
    weights = SiglipWeights(
        tower=load_tower(file, w, c),
        soft_emb_norm=w.vector("mm.soft_emb_norm.weight", (D,)),
        projection=Linear(w.transposed("mm.input_projection.weight", (D, out))),
    )
    w.finish()
    return weights


def load_tower(file: GGUFFile, w: Weights, c: VisionConfig) -> TowerWeights:
    """Take the tower's tensors. Raises GGUFError for what is missing or has the wrong shape."""
    return TowerWeights(
        patch=w.linear("v.patch_embd", (c.width, 3, c.patch_size, c.patch_size)),
        position=w.vector("v.position_embd.weight", (c.n_patches, c.width)),
        blocks=vit.load_blocks(file, w, c, c.n_stored),
        post_ln=w.norm("v.post_ln", c.width),
    )


def encode(pixels: Array, w: TowerWeights, c: VisionConfig, ops: Ops, tap: Tap = no_tap) -> Array:
    """Return the features of all patches, row by row.  Normalised pixels (3, S, S) -> (n * n, Dv)"""
    tap = scoped(tap, "vision")
    x = tap("patch_embd", ops.patches(tap("pixels", pixels), w.patch))
    x = tap("pos_embd", x + w.position)
    x = vit.blocks(x, w.blocks, c, activation(c), ops, tap)
    return tap("post_ln", ops.layer_norm(x, w.post_ln, c.eps))


def project(x: Array, w: SiglipWeights, c: VisionConfig, merge: int, ops: Ops, tap: Tap = no_tap) -> Array:
    """Map features to rows that stand among the decoder's embeddings.  (n * n, Dv) -> (N, D)"""
    tap = scoped(tap, "projector")
    x = tap("pool", pool(x, c.grid, merge))  # (N, Dv)
    x = tap("soft_emb_norm", ops.rms_norm(x, w.soft_emb_norm, c.eps))
    return tap("out", ops.linear(x, w.projection))


@dataclass(frozen=True, slots=True)
class Siglip:
    """The tower and its projector: `family.Tower`."""

    ORIGINAL: ClassVar[str] = "hf"
    MARKERS: ClassVar[tuple[str, ...]] = ("<start_of_image>", "<end_of_image>")
    replays: ClassVar[bool] = True
    file: GGUFFile
    config: VisionConfig
    merge: int
    quirks: Quirks
    weights: SiglipWeights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "Siglip":
        config, merge = read(file)
        return cls(file, config, merge, quirks, load(file, ops, config), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        c, merge = read(file)
        return {
            **c.about(),
            "tokens_per_image": (c.grid // merge) ** 2,
            "merge": merge,
            "fit": quirks.fit,
            "blocks_run": c.n_stored,
            "activation": activation(c),
        }

    @property
    def width(self) -> int:
        return self.weights.projection.weight.shape[0]

    @classmethod
    def output(cls, file: GGUFFile) -> tuple[str, int]:
        return "mm.input_projection.weight", 1

    def span(self, width: int, height: int) -> Span:
        side = self.config.grid // self.merge
        start, end = self.MARKERS
        lines = "\n\n" if self.quirks.image_newlines == "double" else ""
        return Span((side, side), (lines + start, side**2, end + lines))

    def preprocess(self, rgb: np.ndarray, tap: Tap = no_tap) -> fit.Preprocessed:
        c, rgb = self.config, tap("image.rgb", rgb)
        if self.quirks.fit == "stretch":
            fitted = fit.stretch(rgb, c.image_size, BILINEAR)
        else:
            fitted = fit.resize_pad(rgb, c.image_size, BLACK, BILINEAR)
        side = c.grid // self.merge
        return prepared(rgb, [fitted], np.arange(side**2).reshape(1, side, side), c, tap)

    def encode(self, pixels: Array, tap: Tap = no_tap) -> Array:
        ops, w, c = self.ops, self.weights, self.config
        with ops.running(c.n_patches, c.width * c.mlp_width):
            features = encode(pixels[0], w.tower, c, ops, tap)
            return project(features, w, c, self.merge, ops, tap)

    def pack(self, rows: Array, width: int, height: int) -> Array:
        return rows

    def stages(self) -> tuple[Stage, ...]:
        return tuple(TABLE.run(self.config.n_stored))
