"""Llama-3.2-Vision's tower: a ViT over all tiles of a picture, gated blocks behind it, and one linear map.

n patches a side of a tile, N = n^2 of them, K tiles at most, t of them with a picture, L = N + 1 rows of a tile, R rows
in all, J intermediate states, D tower width, Dt decoder width.
Llama 3 herd of models, https://arxiv.org/abs/2407.21783, section 7.2; Meta's llama-models,
models/llama3/multimodal/model.py, `VisionEncoder`; transformers 5.24, models/mllama/modeling_mllama.py,
`MllamaVisionModel`. Keys and tensor names are Ollama's (model/models/mllama/model_vision.go); llama.cpp has no such
tower.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..images import fit
from ..ops.protocol import Activation, Array, Linear, Matrix, Norm, Ops
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import vit
from .config import MAX_BLOCKS, MAX_HEADS, MAX_WIDTH, VisionConfig
from .family import Span, prepared
from .looking import PICTURE
from .stages import IMAGE, Stage, Table
from .tile_canvas import TileCanvas, TileLayout
from .vit import VitBlock
from .weights import Weights

V = "mllama.vision."
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's: files have none
NORM_EPS = 1e-5  # of the norms before and behind the blocks, whatever the file says of theirs
_NAMES = {
    "layer_norm1": "input_layernorm", "layer_norm2": "post_attention_layernorm", "out_proj": "o_proj",
    "vision_tower.encoder": "vision_model.transformer",
}  # fmt: skip


def _here(stage: Stage) -> Stage:
    """Return a stage of a ViT block by the names that transformers' mllama gives its parts."""
    theirs = stage.transformers
    for one, other in _NAMES.items():
        theirs = theirs.replace(one, other)
    return replace(stage, llama_cpp="", transformers=theirs)


TABLE = Table(
    "vision.blk",
    before=(
        *(replace(stage, llama_cpp="", transformers=stage.transformers and "< vision_model") for stage in IMAGE),
        Stage("vision.patch_embd", "K*N Dv", "matmul", "v.patch_embd.weight", "", "vision_model.patch_embedding"),
        Stage("vision.pre_tile_embd", "K*N Dv", "float", None, "", "vision_model.pre_tile_positional_embedding"),
        Stage("vision.pos_embd", "K*L Dv", "float", None, "", "vision_model.gated_positional_embedding"),
        Stage("vision.pre_ln", "K*L Dv", "float", None, "", "vision_model.layernorm_pre"),
    ),
    block=tuple(_here(stage) for stage in vit.STAGES),
    behind=(
        Stage("vision.post_ln", "R Dv", "float", None, "", "vision_model.layernorm_post"),
        Stage("vision.post_tile_embd", "R Dv", "float", None, "", "vision_model.post_tile_positional_embedding"),
        Stage("vision.features", "K*L (1+J)*Dv", "float", None, "", "< multi_modal_projector"),
        Stage("projector.out", "K*L D", "matmul", "mm.0.weight", "", "multi_modal_projector"),
    ),
)
GLOBAL_TABLE = Table(
    "vision.global.blk",
    before=(),
    block=tuple(
        replace(
            stage,
            weight=stage.weight and stage.weight.replace("v.blk", "v.global.blk"),
            transformers=stage.transformers.replace("vision_model.transformer", "vision_model.global_transformer"),
        )
        for stage in TABLE.block
    ),
    behind=(),
)


@dataclass(frozen=True, slots=True)
class MllamaVisionPlan:
    """What to run, from the file and the quirks."""

    config: VisionConfig
    n_global: int  # gated blocks
    taken: tuple[int, ...]  # blocks whose states are features too
    before: bool  # those states are what the blocks are given; else what they make
    canvas: TileCanvas
    activation: Activation


def read(file: GGUFFile, quirks: Quirks) -> MllamaVisionPlan:
    """Read the tower's settings. Raises GGUFError with the key that is missing, mistyped or impossible."""
    blocks = file.integer(V + "block_count", 1, MAX_BLOCKS)
    c = VisionConfig(
        projector="mllama",
        image_size=file.integer(V + "image_size", 1, 8192),
        patch_size=file.integer(V + "patch_size", 1, 8192),
        width=file.integer(V + "embedding_length", 1, MAX_WIDTH),
        n_head=file.integer(V + "attention.head_count", 1, MAX_HEADS, layers=blocks),
        mlp_width=file.integer(V + "feed_forward_length", 1, MAX_WIDTH, layers=blocks),
        n_stored=blocks,
        feature_layer=None,
        eps=file.number(V + "attention.layer_norm_epsilon", 0.0, 1.0, layers=blocks),
        activation="gelu",
        mean=MEAN,
        std=STD,
    )
    taken = file.array(V + "intermediate_layers_indices", "int")
    _check(file, c, taken)
    return MllamaVisionPlan(
        config=c,
        n_global=file.integer(V + "global.block_count", 0, MAX_BLOCKS),
        taken=tuple(taken),
        before=quirks.tower_states == "before",
        canvas=TileCanvas(c.image_size, file.integer(V + "max_num_tiles", 1, 16)),
        activation="gelu_erf" if quirks.gelu == "erf" else "gelu_tanh",
    )


def _check(file: GGUFFile, c: VisionConfig, taken: list[int]) -> None:
    """Raise GGUFError where one setting contradicts another."""
    if c.image_size % c.patch_size:
        raise GGUFError(file.path, V + "patch_size", f"{c.patch_size} does not divide image_size")
    if c.width % c.n_head:
        raise GGUFError(file.path, V + "attention.head_count", f"{c.n_head} does not divide width {c.width}")
    if any(not 0 <= block < c.n_stored for block in taken) or sorted(set(taken)) != taken:
        problem = f"{taken}, expected rising numbers of blocks, 0..{c.n_stored - 1}"
        raise GGUFError(file.path, V + "intermediate_layers_indices", problem)
    if file.integer(V + "num_channels", 1, 16, 3) != 3:
        raise GGUFError(file.path, V + "num_channels", "expected 3")


@dataclass(frozen=True, slots=True)
class TileEmbedding:
    """What is added to the rows of each tile, by the grid in which the tile stands."""

    table: Matrix  # (grids + 1, K * D) or (grids + 1, K * L * D); row 0 is of no grid
    gate: Array  # (1,), a tanh already

    def of(self, grid: int, tiles: int, width: int) -> Array:
        """Return the part of each tile of a grid.  -> (K, 1 or L, D)"""
        return self.table.rows([grid]).reshape((tiles, -1, width)) * self.gate


@dataclass(frozen=True, slots=True)
class MllamaVisionWeights:
    patch: Linear  # (D, 3, P, P)
    pre_tile: TileEmbedding
    class_embd: Array  # (1, D)
    position: Array  # (L, D), gated
    tile_position: TileEmbedding
    pre_ln: Norm
    blocks: tuple[VitBlock, ...]
    post_ln: Norm
    post_tile: TileEmbedding
    global_blocks: tuple[VitBlock, ...]
    out: Linear  # (Dt, (1 + J) * D)


def load(file: GGUFFile, ops: Ops, p: MllamaVisionPlan) -> MllamaVisionWeights:
    """Take the tensors. Raises GGUFError for what is missing, has the wrong shape, or has no use."""
    c, w = p.config, Weights(file, ops)
    D, L = c.width, c.n_patches + 1
    Dt, _ = w.matrix_shape("mm.0.weight")

    def tiles(name: str, width: int) -> TileEmbedding:
        table = w.matrix(f"{name}.weight", (len(p.canvas.grids()) + 1, p.canvas.most * width))
        return TileEmbedding(table, w.vector(f"{name}.gate", (1,)))

    weights = MllamaVisionWeights(
        patch=w.linear("v.patch_embd", (D, 3, c.patch_size, c.patch_size)),
        pre_tile=tiles("v.pre_tile_position_embd", D),
        class_embd=w.vector("v.class_embd", (1, D)),
        position=w.vector("v.position_embd.weight", (L, D)) * w.vector("v.position_embd.gate", (1,)),
        tile_position=tiles("v.tile_position_embd", L * D),
        pre_ln=w.norm("v.pre_ln", D),
        blocks=vit.load_blocks(file, w, c, c.n_stored),
        post_ln=w.norm("v.post_ln", D),
        post_tile=tiles("v.post_tile_position_embd", D),
        global_blocks=vit.load_blocks(file, w, c, p.n_global, "v.global.blk", vit.GATES),
        out=w.linear("mm.0", (Dt, (1 + len(p.taken)) * D)),
    )
    w.finish(("blk.", "token_embd.", "output", "rope_freqs."))
    return weights


def embed(pixels: Array, w: MllamaVisionWeights, p: MllamaVisionPlan, at: TileLayout, ops: Ops, tap: Tap) -> Array:
    """Return the rows that go into the blocks.  Normalised pixels (3, Y, X) -> (R, D)"""
    c, K, D = p.config, p.canvas.most, p.config.width
    N, L = c.n_patches, c.n_patches + 1
    x = ops.patches(tap("pixels", pixels), w.patch)[at.patches]  # (t * N, D)
    x = tap("patch_embd", ops.concat([x, ops.array(np.zeros((K * N - x.shape[0], D)))]))  # black tiles of zeros
    x = x.reshape((K, N, D)) + w.pre_tile.of(at.grid, K, D)
    x = tap("pre_tile_embd", x.reshape((K * N, D))).reshape((K, N, D))
    x = ops.concat([rows for tile in range(K) for rows in (w.class_embd, x[tile])]).reshape((K, L, D))
    x = x + w.position + w.tile_position.of(at.grid, K, D)
    x = tap("pos_embd", x.reshape((K * L, D)))
    x = tap("pre_ln", ops.layer_norm(x, w.pre_ln, NORM_EPS))
    return ops.concat([x, ops.array(np.zeros((len(at.tile) - K * L, D)))])


def encode(pixels: Array, w: MllamaVisionWeights, p: MllamaVisionPlan, ops: Ops, tap: Tap = no_tap) -> Array:
    """Return the states that a decoder looks at, those of tiles that are not there behind the others.

    Normalised pixels (3, Y, X) -> (K * L, Dt)"""
    c, vision, projector = p.config, scoped(tap, "vision"), scoped(tap, "projector")
    rows, columns = (side // c.image_size for side in pixels.shape[1:])
    at = TileLayout.of(rows, columns, c.grid, p.canvas)
    x, plan, states = embed(pixels, w, p, at, ops, vision), ops.plan(at.sees()), list[Array]()
    for i, block in enumerate(w.blocks):
        given, x = x, vit.block(x, block, c, p.activation, plan, ops, scoped(vision, "blk", i))
        if i in p.taken:
            states.append(given if p.before else x)
    x = vision("post_ln", ops.layer_norm(x, w.post_ln, NORM_EPS))
    parts = w.post_tile.of(at.grid, p.canvas.most, c.width).reshape((p.canvas.most, c.width))
    x = vision("post_tile_embd", x + parts[at.tile])
    for i, block in enumerate(w.global_blocks):
        x = vit.block(x, block, c, p.activation, plan, ops, scoped(vision, "global.blk", i))
    x = vision("features", interleaved(x, states, p.canvas.most * (c.n_patches + 1), ops))
    return projector("out", ops.linear(x, w.out))


def interleaved(x: Array, states: list[Array], n: int, ops: Ops) -> Array:
    """Put the states beside the features of the first n rows: feature 0 of every state, then feature 1 of each, ...

    (R, D), J of (R, D) -> (n, (1 + J) * D)"""
    D, J = x.shape[1], len(states)
    joined = ops.array(np.zeros((n, (1 + J) * D)))
    joined[:, :D] = x[:n]
    for j, state in enumerate(states):
        joined[:, D + j :: J] = state[:n]
    return joined


@dataclass(frozen=True, slots=True)
class MllamaVision:
    """The tower and its projector: `family.Tower`."""

    ORIGINAL: ClassVar[str] = "meta"
    MARKERS: ClassVar[tuple[str, ...]] = (PICTURE,)
    replays: ClassVar[bool] = False  # tiles are laid out on the host
    file: GGUFFile
    plan: MllamaVisionPlan
    weights: MllamaVisionWeights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "MllamaVision":
        p = read(file, quirks)
        return cls(file, p, load(file, ops, p), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        p = read(file, quirks)
        return {
            **p.config.about(),
            "tokens_per_image": 1,
            "most_tiles": p.canvas.most,
            "states_of_blocks": list(p.taken),
            "tower_states": quirks.tower_states,
            "blocks_run": p.config.n_stored,
            "global_blocks_run": p.n_global,
            "activation": p.activation,
        }

    @property
    def config(self) -> VisionConfig:
        return self.plan.config

    @property
    def width(self) -> int:
        return self.weights.out.weight.shape[0]

    @classmethod
    def output(cls, file: GGUFFile) -> tuple[str, int]:
        return "mm.0.weight", 0

    def span(self, width: int, height: int) -> Span:
        rows, columns = self.plan.canvas.grid(width, height)
        n = self.config.grid
        return Span((rows * n, columns * n), (1,), n_seen=rows * columns * (n * n + 1))

    def preprocess(self, rgb: np.ndarray, tap: Tap = no_tap) -> fit.Preprocessed:
        rgb = tap("image.rgb", rgb)
        at = TileLayout.of(*self.plan.canvas.grid(rgb.shape[1], rgb.shape[0]), self.config.grid, self.plan.canvas)
        return prepared(rgb, [self.plan.canvas.fitted(rgb)], at.places[None], self.config, tap)

    def encode(self, pixels: Array, tap: Tap = no_tap) -> Array:
        c = self.config
        with self.ops.running(self.plan.canvas.most * c.n_patches, c.width * c.mlp_width):
            return encode(pixels[0], self.weights, self.plan, self.ops, tap)

    def pack(self, rows: Array, width: int, height: int) -> Array:
        return rows

    def stages(self) -> tuple[Stage, ...]:
        table, p = list(TABLE.run(self.config.n_stored)), self.plan
        at = next(i for i, stage in enumerate(table) if stage.name == "vision.features")
        return (*table[:at], *GLOBAL_TABLE.run(p.n_global), *table[at:])
