"""InternVL's tower: InternViT, squares of patches side by side as one row, and a norm with two linear maps.

N rows of a tile, n patches a side, T positions (n * n and the class token), s patches a side of one row's square, Dv
tower width, M middle, D decoder width.
Chen et al. 2024, https://arxiv.org/abs/2404.16821 and https://arxiv.org/abs/2412.05271; tensor names and defaults of
llama.cpp b11549, tools/mtmd/clip-impl.h, clip.cpp and models/internvl.cpp; transformers 5.24,
models/internvl/modeling_internvl.py.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..gguf.file import GGUFFile
from ..images import fit
from ..ops.protocol import Activation, Array, Linear, Norm, Ops
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import dynamic_tiles, siglip, vit
from .config import VisionConfig
from .dynamic_tiles import DynamicTiles
from .family import Span, prepared
from .projectors import shuffle
from .stages import IMAGE, Stage, Table
from .vit import VitBlock
from .weights import Weights

QK_NORM = "v.blk.0.attn_q_norm.weight"  # InternViT-6B has it; its norms are RMS
PROJECTOR_EPS = 1e-5  # of its norm, whatever the file says of the tower's
THEIRS = {
    "encoder.layers": "encoder.layer",
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
    "self_attn.out_proj": "attention.projection_layer",
    "self_attn": "attention",
}


def _here(stage: Stage) -> Stage:
    """Return a block's stage by the name that transformers' InternVL gives it."""
    name = stage.transformers
    for other, theirs in THEIRS.items():
        name = name.replace(other, theirs)
    return replace(stage, transformers=name)


TABLE = Table(
    "vision.blk",
    before=(
        *IMAGE,
        Stage("vision.patch_embd", "n*n Dv", "matmul", "v.patch_embd.weight", "patch_bias",
              "vision_tower.embeddings.patch_embeddings"),
        Stage("vision.pos_embd", "T Dv", "float", None, "pos_embed (ADD)", "vision_tower.embeddings"),
    ),
    block=tuple(map(_here, vit.STAGES)),
    behind=(
        Stage("vision.features", "n*n Dv", "float", None, "node (CONT)", "vision_tower (patches)"),
        Stage("projector.shuffle", "N s*s*Dv", "exact", None, "node (CONT)", "< multi_modal_projector"),
        Stage("projector.mm_0", "N s*s*Dv", "float", None, "norm_b (ADD)", "multi_modal_projector.layer_norm"),
        Stage("projector.mm_1", "N M", "matmul", "mm.model.mlp.1.weight", "ffn_up_b",
              "multi_modal_projector.linear_1"),
        Stage("projector.gelu", "N M", "table", None, "ffn_gelu", "multi_modal_projector.act"),
        Stage("projector.out", "N D", "matmul", "mm.model.mlp.3.weight", "node (ADD), the last",
              "multi_modal_projector"),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class InternPlan:
    """What to run, from the file and the quirks."""

    config: VisionConfig
    tiles: DynamicTiles
    merge: int  # s
    class_first: bool
    activation: Activation  # of the tower
    gelu: Activation  # of the projector


@dataclass(frozen=True, slots=True)
class InternWeights:
    patch: Linear  # (Dv, 3, P, P)
    class_embd: Array  # (1, Dv)
    position: Array  # (T, Dv)
    blocks: tuple[VitBlock, ...]
    norm: Norm  # mm.model.mlp.0: (s*s*Dv,)
    first: Linear  # mm.model.mlp.1: (M, s*s*Dv)
    second: Linear  # mm.model.mlp.3: (D, M)


def read(file: GGUFFile, quirks: Quirks) -> InternPlan:
    """Return what to run. Raises GGUFError with the key that is missing, mistyped or impossible."""
    c, merge = siglip.read(file, obeyed=dynamic_tiles.KEYS, default=None)
    gelu: Activation = "gelu_erf" if quirks.gelu == "erf" else "gelu_tanh"
    return InternPlan(
        config=c,
        tiles=dynamic_tiles.read(file, c, quirks, c.grid // merge),
        merge=merge,
        class_first=quirks.class_token == "first",
        activation=gelu if c.activation == "gelu" else c.activation,
        gelu=gelu,
    )


def load(file: GGUFFile, ops: Ops, p: InternPlan) -> InternWeights:
    """Take the tensors. Raises GGUFError for what is missing, has the wrong shape, or has no use."""
    c, w = p.config, Weights(file, ops)
    squares, name = p.merge**2 * c.width, "mm.model.mlp"
    middle, out = (w.matrix_shape(f"{name}.{i}.weight")[0] for i in (1, 3))
    weights = InternWeights(
        patch=w.linear("v.patch_embd", (c.width, 3, c.patch_size, c.patch_size)),
        class_embd=w.vector("v.class_embd", (1, c.width)),
        position=w.vector("v.position_embd.weight", (c.n_patches + 1, c.width)),
        blocks=vit.load_blocks(file, w, c, c.n_stored, scales=vit.LAYER_SCALE, qk_norm=QK_NORM in file.tensors),
        norm=w.norm(f"{name}.0", squares),
        first=w.linear(f"{name}.1", (middle, squares)),
        second=w.linear(f"{name}.3", (out, middle)),
    )
    w.finish()
    return weights


def encode(pixels: Array, w: InternWeights, p: InternPlan, ops: Ops, tap: Tap = no_tap) -> Array:
    """Return the features of all patches, row by row.  Normalised pixels (3, S, S) -> (n * n, Dv)

    Positions go to rows in order, so that with the class token last as in llama.cpp b11549 (models/internvl.cpp) every
    patch has its neighbour's."""
    tap = scoped(tap, "vision")
    x = tap("patch_embd", ops.patches(tap("pixels", pixels), w.patch))
    x = ops.concat([w.class_embd, x] if p.class_first else [x, w.class_embd])  # (T, Dv)
    x = tap("pos_embd", x + w.position)
    x = vit.blocks(x, w.blocks, p.config, p.activation, ops, tap)
    return tap("features", x[1:] if p.class_first else x[:-1])


def project(x: Array, w: InternWeights, p: InternPlan, ops: Ops, tap: Tap = no_tap) -> Array:
    """Map features to rows that stand among the decoder's embeddings.  (n * n, Dv) -> (N, D)"""
    tap = scoped(tap, "projector")
    x = tap("shuffle", shuffle(x, p.config.grid, p.merge))  # (N, s*s*Dv)
    x = tap("mm_0", ops.layer_norm(x, w.norm, PROJECTOR_EPS))
    x = tap("mm_1", ops.linear(x, w.first))  # (N, M)
    x = tap("gelu", ops.activation(x, p.gelu))
    return tap("out", ops.linear(x, w.second))


@dataclass(frozen=True, slots=True)
class InternVL:
    """The tower and its projector: `family.Tower`."""

    ORIGINAL: ClassVar[str] = "hf"
    MARKERS: ClassVar[tuple[str, ...]] = ("<img>", "</img>")
    replays: ClassVar[bool] = False  # the order of patches is made on the host
    file: GGUFFile
    plan: InternPlan
    weights: InternWeights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "InternVL":
        p = read(file, quirks)
        return cls(file, p, load(file, ops, p), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        p = read(file, quirks)
        return {
            **p.config.about(),
            "merge": p.merge,
            **p.tiles.about(quirks),
            "class_token": quirks.class_token,
            "blocks_run": p.config.n_stored,
            "activation": p.activation,
            "projector_activation": p.gelu,
        }

    @property
    def config(self) -> VisionConfig:
        return self.plan.config

    @property
    def width(self) -> int:
        return self.weights.second.weight.shape[0]

    @classmethod
    def output(cls, file: GGUFFile) -> tuple[str, int]:
        return "mm.model.mlp.3.weight", 0

    def span(self, width: int, height: int) -> Span:
        tiles, (start, end) = self.plan.tiles, self.MARKERS
        return Span((tiles.m, tiles.m), (start, tiles.n_tiles(width, height) * tiles.m**2, end))

    def preprocess(self, rgb: np.ndarray, tap: Tap = no_tap) -> fit.Preprocessed:
        rgb, tiles = tap("image.rgb", rgb), self.plan.tiles
        places = tiles.places(rgb.shape[1], rgb.shape[0])
        return prepared(rgb, tiles.fitted(rgb), places, self.config, tap)

    def encode(self, pixels: Array, tap: Tap = no_tap) -> Array:
        ops, w, p = self.ops, self.weights, self.plan
        with ops.running(p.config.n_patches, p.config.width * p.config.mlp_width):
            return project(encode(pixels[0], w, p, ops, tap), w, p, ops, tap)

    def pack(self, rows: Array, width: int, height: int) -> Array:
        return rows

    def stages(self) -> tuple[Stage, ...]:
        return tuple(TABLE.run(self.config.n_stored))
