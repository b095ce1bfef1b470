"""LLaVA-1.5's tower: CLIP ViT and its projector.   N patches, T positions (N, and one more with a class token), D
width.

Radford et al. 2021, https://arxiv.org/abs/2103.00020; tensor names of llama.cpp b10605, tools/mtmd/clip-impl.h.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..images import fit
from ..images.resample import BICUBIC
from ..ops.protocol import Activation, Array, Linear, Norm, Ops
from ..profiles import PROFILES, Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import anyres, mobilevlm, projectors, vit
from .anyres import Anyres
from .config import VisionConfig, read_vision
from .family import Span, prepared
from .mobilevlm import LdpWeights, PegWeights
from .projectors import MlpWeights
from .stages import IMAGE, Stage, Table
from .vit import VitBlock
from .weights import Weights

LLAMA_CPP_FILL = (122, 116, 104)  # clip.cpp:1420; the same whatever the file's mean is
TABLE = Table(
    "vision.blk",
    before=(
        *IMAGE,
        Stage("vision.patch_embd", "N Dv", "matmul", "v.patch_embd.weight", "node (MUL_MAT)",
             "vision_tower.embeddings.patch_embedding"),
        Stage("vision.pos_embd", "T Dv", "float", None, "node (ADD)", "vision_tower.embeddings"),
        Stage("vision.pre_ln", "T Dv", "float", None, "pre_ln", "vision_tower.pre_layrnorm"),
    ),
    block=vit.STAGES,
    behind=(
        Stage("vision.post_ln", "T Dv", "float", None, "norm_b (ADD)", "vision_tower.post_layernorm (all rows)"),
        Stage("vision.features", "N Dv", "float", None, "node (GET_ROWS)", "< multi_modal_projector"),
        *projectors.MLP_STAGES,
    ),
)  # fmt: skip

NORM_TABLE = replace(TABLE, behind=(*TABLE.behind[:2], *projectors.NORM_STAGES))  # Yi-VL
LDP_TABLE = replace(TABLE, behind=(*TABLE.behind[:2], *mobilevlm.LDP_STAGES))
PEG_TABLE = replace(TABLE, behind=(*TABLE.behind[:2], *mobilevlm.PEG_STAGES))
HALVED = ("ldp", "ldpv2")  # projectors that leave a row for each square of 2 x 2 patches
Projector = MlpWeights | LdpWeights | PegWeights


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """What to run, from the file and the quirks."""

    n_layer: int
    class_first: bool
    post_ln: bool
    activation: Activation  # of the tower
    gelu: Activation  # of the projector


def read(file: GGUFFile, quirks: Quirks) -> tuple[VisionConfig, Anyres]:
    """Return the tower's settings, and how a picture is cut into tiles. Raises GGUFError."""
    c = read_vision(file, obeyed=anyres.KEYS)
    if c.projector in HALVED and c.grid % 2:
        raise GGUFError(file.path, "clip.vision.patch_size", f"{c.grid} patches a side, expected an even number")
    return c, anyres.read(file, c, quirks, c.grid // 2 if c.projector in HALVED else c.grid)


def plan(config: VisionConfig, quirks: Quirks) -> ClipPlan:
    one_less = quirks.vit_layers == "one-less"
    layers = config.feature_layer if config.feature_layer is not None else config.n_stored - one_less
    gelu: Activation = "gelu_erf" if quirks.gelu == "erf" else "gelu_tanh"
    return ClipPlan(
        n_layer=layers,
        class_first=quirks.class_token == "first",
        post_ln=quirks.post_ln == "apply",
        activation=gelu if config.activation == "gelu" else config.activation,
        gelu=gelu,
    )


@dataclass(frozen=True, slots=True)
class ClipWeights:
    patch: Linear  # (D, 3, P, P)
    class_embd: Array | None  # (1, D)
    position: Array  # (T, D)
    pre_ln: Norm | None
    blocks: tuple[VitBlock, ...]
    post_ln: Norm | None
    projector: Projector
    newline: Array | None  # (1, Dt), the row that ends a line of joined tiles


def load(file: GGUFFile, ops: Ops, c: VisionConfig, p: ClipPlan, tiles: Anyres) -> ClipWeights:
    """Take the tensors. Raises GGUFError for what is missing, has the wrong shape, or has no use."""
    D, w = c.width, Weights(file, ops)
    projector = load_projector(w, c)
    newline = anyres.newline_of(file)
    class_embd = w.vector("v.class_embd", (1, D)) if w.has("v.class_embd") else None
    weights = ClipWeights(
        patch=w.linear("v.patch_embd", (D, 3, c.patch_size, c.patch_size)),
        class_embd=class_embd,
        position=w.vector("v.position_embd.weight", (c.n_patches + (class_embd is not None), D)),
        pre_ln=w.norm("v.pre_ln", D) if w.has("v.pre_ln.weight") else None,
        blocks=vit.load_blocks(file, w, c, p.n_layer),
        post_ln=w.norm("v.post_ln", D) if p.post_ln and w.has("v.post_ln.weight") else None,
        projector=projector,
        newline=w.vector(newline, (1, projector.width)) if tiles.joined else None,
    )
    unused = [*(f"v.blk.{i}." for i in range(p.n_layer, c.n_stored)), *([newline] if tiles.sizes else [])]
    w.finish(unused if p.post_ln else [*unused, "v.post_ln."])
    return weights


def load_projector(w: Weights, c: VisionConfig) -> Projector:
    match c.projector:
        case "ldp":
            return mobilevlm.load_ldp(w, c.width)
        case "ldpv2":
            return mobilevlm.load_peg(w, c.width)
        case _:
            return projectors.load_mlp(w, c.width)


def encode(pixels: Array, w: ClipWeights, c: VisionConfig, p: ClipPlan, ops: Ops, tap: Tap = no_tap) -> Array:
    """Return the features of the patches, row by row.  Normalised pixels (3, S, S) -> (N, D)

    With a class token, rows 1..N of N + 1 are given back: the patches, when it stands first; all but patch 0, and the
    class token as the last one, when it stands last as in llama.cpp b10605 (models/llava.cpp)."""
    tap = scoped(tap, "vision")
    x = tap("patch_embd", ops.patches(tap("pixels", pixels), w.patch))  # (N, D)
    if w.class_embd is not None:
        x = ops.concat([w.class_embd, x] if p.class_first else [x, w.class_embd])  # (T, D)
    x = tap("pos_embd", x + w.position)
    if w.pre_ln is not None:
        x = tap("pre_ln", ops.layer_norm(x, w.pre_ln, c.eps))
    x = vit.blocks(x, w.blocks, c, p.activation, ops, tap)
    if w.post_ln is not None:
        x = tap("post_ln", ops.layer_norm(x, w.post_ln, c.eps))
    return tap("features", x if w.class_embd is None else x[1:])


@dataclass(frozen=True, slots=True)
class Clip:
    """The tower and its projector: `family.Tower`."""

    ORIGINAL: ClassVar[str] = "llava"
    MARKERS: ClassVar[tuple[str, ...]] = ()
    file: GGUFFile
    config: VisionConfig
    plan: ClipPlan
    square: str  # the quirk
    anyres: Anyres
    weights: ClipWeights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "Clip":
        config, tiles = read(file, quirks)
        p = plan(config, quirks)
        return cls(file, config, p, quirks.square, tiles, load(file, ops, config, p, tiles), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        c, tiles = read(file, quirks)
        p = plan(c, quirks)
        return {
            **c.about(),
            "tokens_per_image": tiles.most(),
            **({"square": quirks.square} if not tiles.sizes else tiles.about(quirks)),
            "class_token": quirks.class_token if "v.class_embd" in file.tensors else None,
            "blocks_run": p.n_layer,
            "blocks_run_by_profile": {name: plan(c, other).n_layer for name, other in PROFILES.items()},
            "post_ln": "v.post_ln.weight" in file.tensors and quirks.post_ln,
            "activation": p.activation,
            "projector_activation": p.gelu,
        }

    @property
    def replays(self) -> bool:
        """Return whether no array is made on the host: MobileVLM's neighbours are."""
        return self.config.projector not in HALVED

    @property
    def width(self) -> int:
        return self.weights.projector.width

    @classmethod
    def output(cls, file: GGUFFile) -> tuple[str, int]:
        names = ("mm.3.weight", "mm.model.mlp.3.weight", "mm.model.mlp.2.weight", "mm.2.weight")
        return next((name for name in names if name in file.tensors), names[-1]), 0

    def span(self, width: int, height: int) -> Span:
        return Span((self.anyres.n, self.anyres.n), (len(self.anyres.order(width, height)),))

    def preprocess(self, rgb: np.ndarray, tap: Tap = no_tap) -> fit.Preprocessed:
        rgb = tap("image.rgb", rgb)
        height, width = rgb.shape[:2]
        fitted = self.anyres.fitted(rgb) if self.anyres.sizes else [self._squared(rgb)]
        return prepared(rgb, fitted, self.anyres.places(width, height), self.config, tap)

    def _squared(self, rgb: np.ndarray) -> fit.Fitted:
        c = self.config
        if self.square == "pad-resize":
            r, g, b = (int(mean * 255) for mean in c.mean)
            return fit.pad_resize(rgb, c.image_size, (r, g, b))
        if self.square == "crop":
            return fit.crop(rgb, c.image_size)
        return fit.resize_pad(rgb, c.image_size, LLAMA_CPP_FILL, BICUBIC)

    def encode(self, pixels: Array, tap: Tap = no_tap) -> Array:
        ops, w, c = self.ops, self.weights, self.config
        with ops.running(c.n_patches, c.width * c.mlp_width):
            features = encode(pixels[0], w, c, self.plan, ops, tap)
            match w.projector:
                case LdpWeights():
                    return mobilevlm.ldp(features, w.projector, self.plan.gelu, c.eps, c.grid, ops, tap)
                case PegWeights():
                    return mobilevlm.peg(features, w.projector, self.plan.gelu, c.grid, ops, tap)
                case MlpWeights():
                    return projectors.mlp(features, w.projector, self.plan.gelu, c.eps, ops, tap)

    def pack(self, rows: Array, width: int, height: int) -> Array:
        return self.anyres.pack(rows, self.weights.newline, width, height, self.ops)

    def stages(self) -> tuple[Stage, ...]:
        w = self.weights
        absent = [f"vision.{name}" for name in ("pre_ln", "post_ln") if getattr(w, name) is None]
        match w.projector:
            case LdpWeights():
                table = LDP_TABLE
            case PegWeights():
                table = PEG_TABLE
            case MlpWeights():
                table = TABLE if w.projector.norms is None else NORM_TABLE
        return tuple(table.run(len(w.blocks), absent))
