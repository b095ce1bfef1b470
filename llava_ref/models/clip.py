"""CLIP ViT: pixels -> patch features.   N patches, T positions (N, and one more with a class token), D width, H heads,
dh = D / H, F MLP width.

Radford et al. 2021, https://arxiv.org/abs/2103.00020; tensor names of llama.cpp b10605, tools/mtmd/clip-impl.h.
"""

from dataclasses import dataclass

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..ops.protocol import Activation, Array, Ops, Weight
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from .config import VisionConfig
from .parts import attend
from .weights import Affine, Weights


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One transformer block; a norm's weight is (D,), a bias as long as its matrix has rows."""

    ln1: Affine
    q: Affine  # (D, D)
    k: Affine  # (D, D)
    v: Affine  # (D, D)
    out: Affine  # (D, D)
    ln2: Affine
    up: Affine  # (F, D)
    down: Affine  # (D, F)


@dataclass(frozen=True, slots=True)
class VisionWeights:
    patch: Affine  # (D, 3, P, P)
    class_embd: Weight | None  # (D,)
    position: Weight  # (T, D)
    pre_ln: Affine | None
    blocks: tuple[BlockWeights, ...]
    post_ln: Affine | None


@dataclass(frozen=True, slots=True)
class VisionPlan:
    """What to run, from the file and the quirks."""

    n_layer: int
    class_first: bool
    post_ln: bool
    activation: Activation


def plan(config: VisionConfig, quirks: Quirks) -> VisionPlan:
    one_less = quirks.vit_layers == "one-less"
    layers = config.feature_layer if config.feature_layer is not None else config.n_stored - one_less
    gelu: Activation = "gelu_erf" if quirks.gelu == "erf" else "gelu_tanh"
    return VisionPlan(
        n_layer=layers,
        class_first=quirks.class_token == "first",
        post_ln=quirks.post_ln == "apply",
        activation=gelu if config.activation == "gelu" else config.activation,
    )


def load(file: GGUFFile, w: Weights, c: VisionConfig, p: VisionPlan) -> VisionWeights:
    """Takes the tower's tensors. GGUFError names what is missing or has the wrong shape."""
    D, F = c.width, c.mlp_width
    if D == F:
        problem = f"equals embedding_length {D}: ffn_up and ffn_down cannot be told from the swapped ones of old files"
        raise GGUFError(file.path, "clip.vision.feed_forward_length", problem)
    class_embd = w.maybe("v.class_embd", (D,))
    return VisionWeights(
        patch=w.affine("v.patch_embd", (D, 3, c.patch_size, c.patch_size)),
        class_embd=class_embd,
        position=w.take("v.position_embd.weight", (c.n_patches + (class_embd is not None), D)),
        pre_ln=w.maybe_affine("v.pre_ln", (D,)),
        blocks=tuple(_load_block(w, f"v.blk.{i}", D, F) for i in range(p.n_layer)),
        post_ln=w.maybe_affine("v.post_ln", (D,)) if p.post_ln else None,
    )


def _load_block(w: Weights, name: str, D: int, F: int) -> BlockWeights:
    # Files of llama.cpp's first converter call the first matrix ffn_down and the second ffn_up.
    swapped = w.matrix_shape(f"{name}.ffn_down.weight") == (F, D)
    up, down = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    return BlockWeights(
        ln1=w.affine(f"{name}.ln1", (D,)),
        q=w.affine(f"{name}.attn_q", (D, D)),
        k=w.affine(f"{name}.attn_k", (D, D)),
        v=w.affine(f"{name}.attn_v", (D, D)),
        out=w.affine(f"{name}.attn_out", (D, D)),
        ln2=w.affine(f"{name}.ln2", (D,)),
        up=w.affine(f"{name}.{up}", (F, D)),
        down=w.affine(f"{name}.{down}", (D, F)),
    )


def attention(x: Array, w: BlockWeights, n_head: int, ops: Ops, tap: Tap = no_tap) -> Array:
    T, D = x.shape
    heads = (T, n_head, D // n_head)
    q = tap("Qcur", ops.linear(x, w.q.weight, w.q.bias)).reshape(heads)  # (T, H, dh)
    k = tap("Kcur", ops.linear(x, w.k.weight, w.k.bias)).reshape(heads)
    v = tap("Vcur", ops.linear(x, w.v.weight, w.v.bias)).reshape(heads)
    y = tap("kqv_out", attend(q, k, v, (D // n_head) ** -0.5, None, ops, tap))  # (T, D)
    return tap("attn_out", ops.linear(y, w.out.weight, w.out.bias))


def mlp(x: Array, w: BlockWeights, activation: Activation, ops: Ops, tap: Tap = no_tap) -> Array:
    u = tap("ffn_up", ops.linear(x, w.up.weight, w.up.bias))  # (T, F)
    u = tap("ffn_act", ops.activation(u, activation))
    return tap("ffn_out", ops.linear(u, w.down.weight, w.down.bias))


def block(x: Array, w: BlockWeights, c: VisionConfig, p: VisionPlan, ops: Ops, tap: Tap = no_tap) -> Array:
    n = tap("layer_inp_normed", ops.layer_norm(x, w.ln1.weight, w.ln1.bias, c.eps))
    h = tap("ffn_inp", x + attention(n, w, c.n_head, ops, tap))
    n = tap("ffn_inp_normed", ops.layer_norm(h, w.ln2.weight, w.ln2.bias, c.eps))
    return tap("layer_out", h + mlp(n, w, p.activation, ops, tap))


def encode(pixels: Array, w: VisionWeights, c: VisionConfig, p: VisionPlan, ops: Ops, tap: Tap = no_tap) -> Array:
    """Normalised pixels (3, S, S) -> features of the patches, row by row (N, D).

    With a class token, rows 1..N of N + 1 are given back: the patches, when it stands first; all but patch 0, and the
    class token as the last one, when it stands last as in llama.cpp b10605 (models/llava.cpp)."""
    tap = scoped(tap, "vision")
    x = tap("patch_embd", ops.patches(tap("pixels", pixels), w.patch.weight, w.patch.bias))  # (N, D)
    if w.class_embd is not None:
        x = ops.concat([w.class_embd, x] if p.class_first else [x, w.class_embd])  # (T, D)
    x = tap("pos_embd", ops.add(x, w.position))
    if w.pre_ln is not None:
        x = tap("pre_ln", ops.layer_norm(x, w.pre_ln.weight, w.pre_ln.bias, c.eps))
    for i, weights in enumerate(w.blocks):
        x = block(x, weights, c, p, ops, scoped(tap, "blk", i))
    if w.post_ln is not None:
        x = tap("post_ln", ops.layer_norm(x, w.post_ln.weight, w.post_ln.bias, c.eps))
    return tap("features", x if w.class_embd is None else x[1:])
