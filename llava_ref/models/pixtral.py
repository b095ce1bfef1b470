"""Pixtral's tower: patches of a picture of any size, rope in two directions, and lines that end by a break.

n patches, N rows of a picture, s patches a side of one row's square, D tower width, Dt decoder width, M middle of the
projector, P patch side.
Agrawal et al. 2024, https://arxiv.org/abs/2410.07073, section 2.1. Names of llama.cpp b11549, tools/mtmd/clip.cpp and
models/pixtral.cpp; transformers 5.24, models/pixtral/modeling_pixtral.py and, for Mistral Small 3.1 (s = 2),
models/mistral3/modeling_mistral3.py.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..images import fit, free_size
from ..images.free_size import FreeSize, LongestEdge
from ..ops.protocol import Activation, Array, Linear, Ops
from ..ops.sees import Sees
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import rope_vit
from .config import VisionConfig, read_vision
from .family import Span, prepared
from .patch_grid import BASE, placed
from .projectors import squares_first
from .rope_vit import RopeVitBlock
from .stages import IMAGE, Stage, Table
from .weights import Weights

MERGE, ROPE_BASE = "clip.vision.spatial_merge_size", "clip.rope.freq_base"
BREAK, END = "[IMG_BREAK]", "[IMG_END]"
MOST = 128  # squares along a side: as many in all as Qwen2-VL's processor allows
_V, _HV = "v.blk.{i}", "vision_tower.transformer.layers.{i}"
_P = "multi_modal_projector"
TABLE = Table(
    "vision.blk",
    before=(
        *IMAGE,
        Stage("vision.patch_embd", "n Dv", "matmul", "v.patch_embd.weight", "node (CONT)", "vision_tower.patch_conv"),
        Stage("vision.pre_ln", "n Dv", "float", None, "pre_ln", "vision_tower.ln_pre"),
    ),
    block=(
        Stage("layer_inp_normed", "n Dv", "float", None, "layer_inp_normed-{i}", f"{_HV}.attention_norm"),
        Stage("Qcur", "n Dv", "matmul", f"{_V}.attn_q.weight", "Qcur-{i} (RESHAPE)", f"{_HV}.attention.q_proj"),
        Stage("Kcur", "n Dv", "matmul", f"{_V}.attn_k.weight", "Kcur-{i} (RESHAPE)", f"{_HV}.attention.k_proj"),
        Stage("Vcur", "n Dv", "matmul", f"{_V}.attn_v.weight", "Vcur-{i} (RESHAPE)", f"{_HV}.attention.v_proj"),
        Stage("Qcur_rope", "n Hv dhv", "float", None, "Qcur_pos-{i}", f"{_HV}.attention, after rope"),
        Stage("Kcur_rope", "n Hv dhv", "float", None, "Kcur_pos-{i}", f"{_HV}.attention, after rope"),
        Stage("kq_soft_max", "Hv n n", "attention", None, "node (SOFT_MAX)", f"{_HV}.attention, weights"),
        Stage("kqv_out", "n Dv", "attention", None, "kqv_out-{i}", f"< {_HV}.attention.o_proj"),
        Stage("attn_out", "n Dv", "matmul", f"{_V}.attn_out.weight", "attn_out-{i}", f"{_HV}.attention.o_proj"),
        Stage("ffn_inp", "n Dv", "float", None, "ffn_inp-{i}", f"< {_HV}.ffn_norm"),
        Stage("ffn_inp_normed", "n Dv", "float", None, "ffn_inp_normed-{i}", f"{_HV}.ffn_norm"),
        Stage("ffn_gate", "n Fv", "matmul", f"{_V}.ffn_gate.weight", "ffn_gate-{i}", f"{_HV}.feed_forward.gate_proj"),
        Stage("ffn_up", "n Fv", "matmul", f"{_V}.ffn_up.weight", "ffn_up-{i}", f"{_HV}.feed_forward.up_proj"),
        Stage("ffn_act", "n Fv", "float", None, "ffn_swiglu-{i}, ffn_geglu-{i}", f"< {_HV}.feed_forward.down_proj"),
        Stage("ffn_out", "n Dv", "matmul", f"{_V}.ffn_down.weight", "ffn_out-{i}", f"{_HV}.feed_forward.down_proj"),
        Stage("layer_out", "n Dv", "float", None, "layer_out-{i}", _HV),
    ),
    behind=(
        Stage("projector.input_norm", "n Dv", "float", None, "node (MUL)", f"{_P}.norm"),
        Stage("projector.shuffle", "N s*s*Dv", "exact", None, "node (IM2COL)", f"< {_P}.patch_merger.merging_layer"),
        Stage("projector.merger", "N Dv", "matmul", "mm.patch_merger.weight", "node (MUL_MAT)", f"{_P}.patch_merger"),
        Stage("projector.mm_1", "N M", "matmul", "mm.1.weight", "node (MUL_MAT, ADD)", f"{_P}.linear_1"),
        Stage("projector.gelu", "N M", "table", None, "node (UNARY)", f"{_P}.act"),
        Stage("projector.out", "N D", "matmul", "mm.2.weight", "node (MUL_MAT, ADD), the last", _P),
    ),
)
GELU_TABLE = replace(  # a tower with GELU, which ggml reads from a table
    TABLE,
    block=tuple(replace(stage, kind="table") if stage.name == "ffn_act" else stage for stage in TABLE.block),
)
MERGER = ("projector.input_norm", "projector.shuffle", "projector.merger")


@dataclass(frozen=True, slots=True)
class PixtralPlan:
    """What to run, from the file and the quirks."""

    config: VisionConfig
    merge: int  # s
    size: FreeSize | LongestEdge
    stretch: bool  # a picture takes the size whatever its aspect; else it is centred on black
    break_rows: bool  # a break is a row of the picture; else it is a token of the text
    activation: Activation  # of the tower
    gelu: Activation  # of the projector


def read(file: GGUFFile, quirks: Quirks) -> PixtralPlan:
    """Read the tower's settings. Raises GGUFError."""
    merge = file.integer(MERGE, 1, 16, 1)
    c = read_vision(file, obeyed=[MERGE], square=merge)
    if c.feature_layer not in (None, c.n_stored):
        raise GGUFError(file.path, "clip.vision.feature_layer", f"{c.feature_layer}, expected no such key")
    if c.width // c.n_head % 4:
        raise GGUFError(file.path, "clip.vision.attention.head_count", f"{c.width} / {c.n_head} is no multiple of 4")
    if (base := file.number(ROPE_BASE, 0.0, 1e15, BASE)) != BASE:
        raise GGUFError(file.path, ROPE_BASE, f"{base:g} is not supported, expected {BASE:g} or no such key")
    square = merge * c.patch_size
    if c.image_size > MOST * square:
        problem = f"{c.image_size} is more than {MOST} squares of {square} pixels"
        raise GGUFError(file.path, "clip.vision.image_size", problem)
    processor = quirks.picture_size == "processor"
    gelu: Activation = "gelu_erf" if quirks.gelu == "erf" else "gelu_tanh"
    return PixtralPlan(
        config=c,
        merge=merge,
        size=LongestEdge(square, c.image_size) if processor else FreeSize(square, 8, 1024, single=True),
        stretch=quirks.fit == "stretch",
        break_rows=quirks.line_breaks == "rows",
        activation=gelu if c.activation == "gelu" else c.activation,
        gelu=gelu,
    )


@dataclass(frozen=True, slots=True)
class MergerWeights:
    norm: Array  # (D,)
    squares: Linear  # (D, s*s*D)


@dataclass(frozen=True, slots=True)
class PixtralWeights:
    patch: Linear  # (D, 3, P, P)
    pre_ln: Array  # (D,)
    blocks: tuple[RopeVitBlock, ...]
    merger: MergerWeights | None  # Mistral Small 3.1
    first: Linear  # mm.1: (M, D)
    second: Linear  # mm.2: (Dt, M)
    line_break: Array  # (1, Dt)


def load(file: GGUFFile, ops: Ops, p: PixtralPlan) -> PixtralWeights:
    """Take the tensors. Raises GGUFError for what is missing, has the wrong shape, or has no use."""
    c, w = p.config, Weights(file, ops)
    D, (M, _), (Dt, _) = c.width, w.matrix_shape("mm.1.weight"), w.matrix_shape("mm.2.weight")
    if (F := w.matrix_shape("v.blk.0.ffn_up.weight")[0]) != c.mlp_width:
        raise GGUFError(file.path, "v.blk.0.ffn_up.weight", f"has {F} rows, expected {c.mlp_width}")
    merged = p.merge > 1 or w.has("mm.patch_merger.weight")
    weights = PixtralWeights(
        patch=w.linear("v.patch_embd", (D, 3, c.patch_size, c.patch_size)),
        pre_ln=w.vector("v.pre_ln.weight", (D,)),
        blocks=rope_vit.load_blocks(file, w, c, gated=True),
        merger=_load_merger(w, D, p.merge) if merged else None,
        first=w.linear("mm.1", (M, D)),
        second=w.linear("mm.2", (Dt, M)),
        line_break=w.vector("v.token_embd.img_break", (1, Dt)),
    )
    w.finish()
    return weights


def _load_merger(w: Weights, D: int, s: int) -> MergerWeights:
    return MergerWeights(w.vector("mm.input_norm.weight", (D,)), w.linear("mm.patch_merger", (D, s * s * D)))


def encode(pixels: Array, w: PixtralWeights, p: PixtralPlan, ops: Ops, tap: Tap = no_tap) -> Array:
    """Return the features of the patches, row by row.  Normalised pixels (3, Y, X) -> (n, D)"""
    c, tap = p.config, scoped(tap, "vision")
    x = tap("patch_embd", ops.patches(tap("pixels", pixels), w.patch))
    x = tap("pre_ln", ops.rms_norm(x, w.pre_ln, c.eps))
    places = np.argwhere(np.ones([side // c.patch_size for side in pixels.shape[1:]]))  # (n, 2) row and column
    at = placed(places, c.width // c.n_head, "adjacent", ops, apart=0.5)
    everything = ops.plan(Sees.all(len(places)))
    for i, weights in enumerate(w.blocks):
        x = rope_vit.block(x, weights, c, p.activation, at, everything, ops, scoped(tap, "blk", i))
    return x


def project(x: Array, w: PixtralWeights, p: PixtralPlan, grid: tuple[int, int], ops: Ops, tap: Tap = no_tap) -> Array:
    """Map features to rows that stand among the decoder's embeddings; `grid`: rows and columns of patches.

    (n, D) -> (N, Dt)"""
    tap = scoped(tap, "projector")
    if w.merger is not None:
        x = tap("input_norm", ops.rms_norm(x, w.merger.norm, p.config.eps))
        x = tap("shuffle", channels_first(x, grid, p.merge))  # (N, s*s*D)
        x = tap("merger", ops.linear(x, w.merger.squares))  # (N, D)
    x = tap("gelu", ops.activation(tap("mm_1", ops.linear(x, w.first)), p.gelu))
    return tap("out", ops.linear(x, w.second))


def channels_first(x: Array, grid: tuple[int, int], s: int) -> Array:
    """Put squares of s x s patches into one row each, the s*s numbers of a channel together.  (n, D) -> (N, s*s*D)"""
    D = x.shape[1]
    order = np.arange(s * s * D).reshape(s * s, D).T.ravel()
    return squares_first(x, *grid, s)[:, order]


@dataclass(frozen=True, slots=True)
class Pixtral:
    """The tower and its projector: `family.Tower`."""

    ORIGINAL: ClassVar[str] = "hf"
    MARKERS: ClassVar[tuple[str, ...]] = (BREAK, END)
    replays: ClassVar[bool] = False  # the places of patches are made on the host
    file: GGUFFile
    plan: PixtralPlan
    weights: PixtralWeights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "Pixtral":
        p = read(file, quirks)
        return cls(file, p, load(file, ops, p), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        p = read(file, quirks)
        return {
            **{name: value for name, value in p.config.about().items() if name not in ("image_size", "grid")},
            "square_pixels": p.size.square,
            "tokens_per_image": p.size.most + p.size.lines,
            "tokens_least": p.size.least + 1,
            "fit": quirks.fit,
            "picture_size": quirks.picture_size,
            "line_breaks": quirks.line_breaks,
            "merge": p.merge,
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
        return "mm.2.weight", 0

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Return lines of a picture and rows in one of them."""
        across, down = (side // self.plan.size.square for side in self.plan.size.of(width, height))
        return down, across

    def span(self, width: int, height: int) -> Span:
        lines, across = self._grid(width, height)
        if self.plan.break_rows:
            return Span((lines, across), (lines * (across + 1) - 1, END))
        return Span((lines, across), (across, *(lines - 1) * (BREAK, across), END))

    def preprocess(self, rgb: np.ndarray, tap: Tap = no_tap) -> fit.Preprocessed:
        rgb = tap("image.rgb", rgb)
        height, width = rgb.shape[:2]
        fitted = free_size.fitted(rgb, self.plan.size.of(width, height), self.plan.stretch)
        lines, across = self._grid(width, height)
        step = across + self.plan.break_rows  # from one line to the next
        rows = np.arange(lines)[:, None] * step + np.arange(across)
        return prepared(rgb, [fitted], rows[None], self.config, tap)

    def encode(self, pixels: Array, tap: Tap = no_tap) -> Array:
        ops, w, p, c = self.ops, self.weights, self.plan, self.config
        rows, columns = (side // c.patch_size for side in pixels.shape[2:])
        with ops.running(rows * columns, c.width * max(c.width, c.mlp_width)):
            x = encode(pixels[0], w, p, ops, tap)
            x = project(x, w, p, (rows, columns), ops, tap)  # (N, Dt)
        if not p.break_rows:
            return x
        lines = np.arange(x.shape[0]).reshape(rows // p.merge, -1)
        order = np.pad(lines, ((0, 0), (0, 1)), constant_values=-1).ravel()[:-1]  # the last line ends by a token
        return ops.concat([x, w.line_break])[order]

    def pack(self, rows: Array, width: int, height: int) -> Array:
        return rows

    def stages(self) -> tuple[Stage, ...]:
        table = TABLE if self.plan.activation == "silu" else GELU_TABLE
        return tuple(table.run(self.config.n_stored, () if self.weights.merger is not None else MERGER))
