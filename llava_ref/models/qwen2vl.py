"""The towers of Qwen2-VL and Qwen2.5-VL: patches of a picture of any size, rope in two directions, 2 x 2 merged.

n patches, N = n / 4 rows of a picture, D tower width, H heads, dh = D / H, F MLP width, Dt decoder width, P patch side.
Qwen2-VL, https://arxiv.org/abs/2409.12191; Qwen2.5-VL report, https://arxiv.org/abs/2502.13923, section 2.1. Names of
llama.cpp b11549, tools/mtmd/models/qwen2vl.cpp; transformers 5.24, models/qwen2_5_vl/modeling_qwen2_5_vl.py.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..images import fit, free_size
from ..images.free_size import FreeSize
from ..ops.protocol import Activation, Array, Linear, Norm, Ops
from ..ops.sees import Sees
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import rope_vit
from .config import VisionConfig, read_vision
from .family import Span, prepared
from .patch_grid import MERGE, PatchGrid, placed
from .rope_vit import RopeVitBlock
from .stages import IMAGE, Stage, Table
from .weights import Weights

PATTERN = "clip.vision.n_wa_pattern"
WINDOW = 112  # pixels a side (Qwen2.5-VL), whatever the file says
_V, _HV = "v.blk.{i}", "visual.blocks.{i}"
_BLOCK = (
    Stage("layer_inp_normed", "n Dv", "float", None, "ln1-{i}", f"{_HV}.norm1"),
    Stage("Qcur", "n Dv", "matmul", f"{_V}.attn_q.weight", "Qcur-{i} (RESHAPE)", f"{_HV}.attn.qkv, its first third"),
    Stage("Kcur", "n Dv", "matmul", f"{_V}.attn_k.weight", "Kcur-{i} (RESHAPE)", f"{_HV}.attn.qkv, its second"),
    Stage("Vcur", "n Dv", "matmul", f"{_V}.attn_v.weight", "Vcur-{i} (RESHAPE)", f"{_HV}.attn.qkv, its last"),
    Stage("Qcur_rope", "n Hv dhv", "float", None, "Qcur_rope-{i}", f"{_HV}.attn, after rope"),
    Stage("Kcur_rope", "n Hv dhv", "float", None, "Kcur_rope-{i}", f"{_HV}.attn, after rope"),
    Stage("kq_soft_max", "Hv n n", "attention", None, "node (SOFT_MAX)", f"{_HV}.attn, weights"),
    Stage("kqv_out", "n Dv", "attention", None, "kqv_out-{i}", f"< {_HV}.attn.proj"),
    Stage("attn_out", "n Dv", "matmul", f"{_V}.attn_out.weight", "attn_out-{i}", f"{_HV}.attn.proj"),
    Stage("ffn_inp", "n Dv", "float", None, "ffn_inp-{i}", f"< {_HV}.norm2"),
    Stage("ffn_inp_normed", "n Dv", "float", None, "ffn_inp_normed-{i}", f"{_HV}.norm2"),
    Stage("ffn_gate", "n Fv", "matmul", f"{_V}.ffn_gate.weight", "ffn_gate_b-{i}", f"{_HV}.mlp.gate_proj"),
    Stage("ffn_up", "n Fv", "matmul", f"{_V}.ffn_up.weight", "ffn_up_b-{i}", f"{_HV}.mlp.up_proj, mlp.fc1"),
    Stage("ffn_act", "n Fv", "float", None, "ffn_swiglu-{i}, ffn_gelu_quick-{i}", f"< {_HV}.mlp.down_proj, mlp.fc2"),
    Stage("ffn_out", "n Dv", "matmul", f"{_V}.ffn_down.weight", "ffn_out-{i}", f"{_HV}.mlp.down_proj, mlp.fc2"),
    Stage("layer_out", "n Dv", "float", None, "layer_out-{i}", _HV),
)
GATED_TABLE = Table(  # Qwen2.5-VL
    "vision.blk",
    before=(
        *IMAGE,
        Stage("vision.patch_embd", "n Dv", "matmul", "v.patch_embd.weight", "node (ADD)", "visual.patch_embed"),
    ),
    block=_BLOCK,
    behind=(
        Stage("vision.post_ln", "n Dv", "float", None, "norm_b (ADD), norm_w (MUL)", "visual.merger.ln_q"),
        Stage("projector.mm_0", "N M", "matmul", "mm.0.weight", "node (ADD)", "visual.merger.mlp.0"),
        Stage("projector.gelu", "N M", "table", None, "node (UNARY)", "visual.merger.mlp.1"),
        Stage("projector.out", "N D", "matmul", "mm.2.weight", "node (ADD), the last", "visual.merger"),
    ),
)
TABLE = replace(  # Qwen2-VL: quick GELU, which ggml reads from a table
    GATED_TABLE,
    block=tuple(
        replace(stage, kind="table") if stage.name == "ffn_act" else stage
        for stage in _BLOCK
        if stage.name != "ffn_gate"
    ),
)


@dataclass(frozen=True, slots=True)
class QwenVisionPlan:
    """What to run, from the file and the quirks."""

    config: VisionConfig  # `mlp_width` is that of the tensors
    gated: bool  # Qwen2.5-VL: RMSNorm, and a gated MLP
    pattern: int  # the last of so many blocks sees everything, others a window; 1: every block sees everything
    size: FreeSize
    stretch: bool  # a picture takes the size whatever its aspect; else it is centred on black
    activation: Activation  # of the tower
    gelu: Activation  # of the projector

    def whole(self, layer: int) -> bool:
        """Say whether a patch of a block sees all others."""
        return (layer + 1) % self.pattern == 0


def read(file: GGUFFile, quirks: Quirks) -> QwenVisionPlan:
    """Read the tower's settings. Raises GGUFError."""
    gated = file.string("clip.projector_type", "") == "qwen2.5vl_merger"
    c = read_vision(file, obeyed=[PATTERN] if gated else [], square=MERGE)
    if c.feature_layer not in (None, c.n_stored):
        raise GGUFError(file.path, "clip.vision.feature_layer", f"{c.feature_layer}, expected no such key")
    if gated and c.activation != "silu":
        raise GGUFError(file.path, "clip.use_silu", "not true, and this projector's tower has gated MLPs")
    if c.width // c.n_head % 4:
        raise GGUFError(file.path, "clip.vision.attention.head_count", f"{c.width} / {c.n_head} is no multiple of 4")
    if gated and c.patch_size * MERGE > WINDOW:
        raise GGUFError(file.path, "clip.vision.patch_size", f"{c.patch_size}, and a window has {WINDOW} pixels a side")
    processor = quirks.picture_size == "processor"
    gelu: Activation = "gelu_erf" if quirks.gelu == "erf" else "gelu_tanh"
    return QwenVisionPlan(
        config=c,
        gated=gated,
        pattern=file.integer(PATTERN, 1, c.n_stored * 2) if gated else 1,
        size=FreeSize(MERGE * c.patch_size, *((4, 16384) if processor else (8, 4096)), single=not processor),
        stretch=quirks.fit == "stretch",
        activation=gelu if c.activation == "gelu" else c.activation,
        gelu=gelu,
    )


@dataclass(frozen=True, slots=True)
class QwenVisionWeights:
    patches: tuple[Linear, Linear]  # (D, 3, P, P) each: of two frames, which a picture is both of
    blocks: tuple[RopeVitBlock, ...]
    post_ln: Norm
    middle: Linear  # (4 D, 4 D)
    out: Linear  # (Dt, 4 D)


def load(file: GGUFFile, ops: Ops, p: QwenVisionPlan) -> QwenVisionWeights:
    """Take the tensors. Raises GGUFError for what is missing, has the wrong shape, or has no use."""
    c, w = p.config, Weights(file, ops)
    D, M = c.width, MERGE**2 * c.width
    Dt, _ = w.matrix_shape("mm.2.weight")
    kernel = (D, 3, c.patch_size, c.patch_size)
    weights = QwenVisionWeights(
        patches=(w.linear("v.patch_embd", kernel), Linear(w.matrix("v.patch_embd.weight.1", kernel))),
        blocks=rope_vit.load_blocks(file, w, c, p.gated),
        post_ln=w.norm("v.post_ln", D),
        middle=w.linear("mm.0", (M, M)),
        out=w.linear("mm.2", (Dt, M)),
    )
    w.finish()
    return weights


def encode(pixels: Array, w: QwenVisionWeights, p: QwenVisionPlan, ops: Ops, tap: Tap = no_tap) -> Array:
    """Return the rows that stand for a picture, row by row.  Normalised pixels (3, Y, X) -> (N, Dt)"""
    c, vision, projector = p.config, scoped(tap, "vision"), scoped(tap, "projector")
    rows, columns = (side // c.patch_size for side in pixels.shape[1:])
    grid = PatchGrid.of(rows, columns, WINDOW // c.patch_size // MERGE if p.gated else max(rows, columns))
    pixels = vision("pixels", pixels)
    x = (ops.patches(pixels, w.patches[0]) + ops.patches(pixels, w.patches[1]))[grid.places @ (columns, 1)]
    x, at = vision("patch_embd", x), placed(grid.places, c.width // c.n_head, "halves", ops)
    whole, windows = (ops.plan(sees) for sees in (Sees.all(len(grid.places)), grid.windows()))
    for i, weights in enumerate(w.blocks):
        plan = whole if p.whole(i) else windows
        x = rope_vit.block(x, weights, c, p.activation, at, plan, ops, scoped(vision, "blk", i))
    x = vision("post_ln", rope_vit.norm(x, w.post_ln, c, p.gated, ops)).reshape((-1, MERGE**2 * c.width))  # (N, 4 D)
    x = projector("gelu", ops.activation(projector("mm_0", ops.linear(x, w.middle)), p.gelu))
    return projector("out", ops.linear(x, w.out)[np.argsort(grid.squares)])


@dataclass(frozen=True, slots=True)
class QwenVision:
    """The tower and its projector: `family.Tower`."""

    ORIGINAL: ClassVar[str] = "hf"
    MARKERS: ClassVar[tuple[str, ...]] = ("<|vision_start|>", "<|vision_end|>")
    replays: ClassVar[bool] = False  # patches are laid out on the host
    file: GGUFFile
    plan: QwenVisionPlan
    weights: QwenVisionWeights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "QwenVision":
        p = read(file, quirks)
        return cls(file, p, load(file, ops, p), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        p = read(file, quirks)
        unused = ("image_size", "grid")
        return {
            **{name: value for name, value in p.config.about().items() if name not in unused},
            "square_pixels": p.size.square,
            "tokens_per_image": p.size.most,
            "tokens_least": p.size.least,
            "fit": quirks.fit,
            "picture_size": quirks.picture_size,
            "merge": MERGE,
            "blocks_run": p.config.n_stored,
            "window_blocks": [i for i in range(p.config.n_stored) if not p.whole(i)],
            "activation": p.activation,
            "projector_activation": p.gelu,
        }

    @property
    def config(self) -> VisionConfig:
        return self.plan.config

    @property
    def width(self) -> int:
        return self.weights.out.weight.shape[0]

    @classmethod
    def output(cls, file: GGUFFile) -> tuple[str, int]:
        return "mm.2.weight", 0

    def span(self, width: int, height: int) -> Span:
        x, y = (side // self.plan.size.square for side in self.plan.size.of(width, height))
        start, end = self.MARKERS
        return Span((y, x), (start, y * x, end))

    def preprocess(self, rgb: np.ndarray, tap: Tap = no_tap) -> fit.Preprocessed:
        rgb = tap("image.rgb", rgb)
        height, width = rgb.shape[:2]
        size, grid = self.plan.size.of(width, height), self.span(width, height).grid
        fitted = free_size.fitted(rgb, size, self.plan.stretch)
        return prepared(rgb, [fitted], np.arange(grid[0] * grid[1]).reshape(1, *grid), self.config, tap)

    def encode(self, pixels: Array, tap: Tap = no_tap) -> Array:
        c = self.config
        n = pixels.shape[2] * pixels.shape[3] // c.patch_size**2
        with self.ops.running(n, c.width * max(c.width, c.mlp_width)):
            return encode(pixels[0], self.weights, self.plan, self.ops, tap)

    def pack(self, rows: Array, width: int, height: int) -> Array:
        return rows

    def stages(self) -> tuple[Stage, ...]:
        return tuple((GATED_TABLE if self.plan.gated else TABLE).run(self.config.n_stored))
