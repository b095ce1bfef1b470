"""The transformer block that CLIP, SigLIP and InternViT share.   T positions, D width, H heads, dh = D / H, F MLP
width.

Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929; tensor names of llama.cpp b10605, tools/mtmd/clip-impl.h.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..ops.protocol import KV, Activation, Array, Linear, Norm, Ops, Plan
from ..ops.sees import Sees
from ..tracing.trace import Tap, no_tap, scoped
from .config import VisionConfig
from .parts import attend
from .stages import Stage
from .weights import Weights

_V, _HV = "v.blk.{i}", "vision_tower.encoder.layers.{i}"
STAGES = (
    Stage("layer_inp_normed", "T Dv", "float", None, "layer_inp_normed-{i}", f"{_HV}.layer_norm1"),
    Stage("Qcur", "T Dv", "matmul", f"{_V}.attn_q.weight", "Qcur-{i} (RESHAPE)", f"{_HV}.self_attn.q_proj"),
    Stage("Kcur", "T Dv", "matmul", f"{_V}.attn_k.weight", "Kcur-{i} (RESHAPE)", f"{_HV}.self_attn.k_proj"),
    Stage("Vcur", "T Dv", "matmul", f"{_V}.attn_v.weight", "Vcur-{i} (RESHAPE)", f"{_HV}.self_attn.v_proj"),
    Stage("kq_soft_max", "Hv T T", "attention", None, "node (SOFT_MAX)", f"{_HV}.self_attn, weights"),
    Stage("kqv_out", "T Dv", "attention", None, "kqv_out-{i}", f"< {_HV}.self_attn.out_proj"),
    Stage("attn_out", "T Dv", "matmul", f"{_V}.attn_out.weight", "attn_out-{i}", f"{_HV}.self_attn.out_proj"),
    Stage("ffn_inp", "T Dv", "float", None, "ffn_inp-{i}", f"< {_HV}.layer_norm2"),
    Stage("ffn_inp_normed", "T Dv", "float", None, "ffn_inp_normed-{i}", f"{_HV}.layer_norm2"),
    Stage("ffn_up", "T Fv", "matmul", f"{_V}.ffn_up.weight", "ffn_up_b-{i}", f"{_HV}.mlp.fc1"),
    Stage("ffn_act", "T Fv", "table", None, "ffn_gelu_quick-{i}, ffn_gelu-{i}", f"{_HV}.mlp.activation_fn"),
    Stage("ffn_out", "T Dv", "matmul", f"{_V}.ffn_down.weight", "ffn_out-{i}", f"{_HV}.mlp.fc2"),
    Stage("layer_out", "T Dv", "float", None, "layer_out-{i}", _HV),
)


@dataclass(frozen=True, slots=True)
class VitBlock:
    """The weights of one block; a norm's gain is (D,), a bias as long as its matrix has rows."""

    ln1: Norm
    q: Linear  # (D, D)
    k: Linear  # (D, D)
    v: Linear  # (D, D)
    out: Linear  # (D, D)
    ln2: Norm
    up: Linear  # (F, D)
    down: Linear  # (D, F)
    attn_scale: Array | None = None  # (D,) or (1,): multiplies what attention adds
    mlp_scale: Array | None = None  # and what the MLP adds
    qk_norms: tuple[Array, Array] | None = None
    """(D,): gains of queries and of keys (InternViT-6B); all norms of the block are RMS norms then."""


_ELSE = {"ln1": "attn_norm", "ln2": "ffn_norm", "attn_out": "attn_output"}  # names of Ollama's converter


@dataclass(frozen=True, slots=True)
class Scales:
    """The names of what multiplies the branches of a block: of each channel, or of all."""

    attn: str
    mlp: str
    each: bool


LAYER_SCALE = Scales("ls1.weight", "ls2.weight", each=True)  # Touvron et al. 2021, https://arxiv.org/abs/2103.17239
GATES = Scales("attn_gate", "ffn_gate", each=False)  # Alayrac et al. 2022, https://arxiv.org/abs/2204.14198


def load_blocks(
    file: GGUFFile,
    w: Weights,
    c: VisionConfig,
    n_layer: int,
    prefix: str = "v.blk",
    scales: Scales | None = None,
    *,
    qk_norm: bool = False,
) -> tuple[VitBlock, ...]:
    """Take the tensors of blocks 0..n_layer-1, and the `scales` and norms of queries and keys that each has.

    Raises GGUFError for what is missing or has the wrong shape."""
    if c.width == c.mlp_width:
        problem = (
            f"equals embedding_length {c.width}: ffn_up and ffn_down cannot be told from the swapped ones of old files"
        )
        raise GGUFError(file.path, "clip.vision.feed_forward_length", problem)
    return tuple(_load(w, f"{prefix}.{i}", c.width, c.mlp_width, scales, qk_norm) for i in range(n_layer))


def _load(w: Weights, name: str, D: int, F: int, scales: Scales | None, qk_norm: bool) -> VitBlock:
    # Files of llama.cpp's first converter call the first matrix ffn_down and the second ffn_up.
    swapped = w.matrix_shape(f"{name}.ffn_down.weight") == (F, D)
    up, down = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    ln1, ln2, out = (f"{name}.{other if w.has(f'{name}.{other}.weight') else part}" for part, other in _ELSE.items())
    return VitBlock(
        ln1=Norm(w.vector(f"{ln1}.weight", (D,)), None) if qk_norm else w.norm(ln1, D),
        q=w.linear(f"{name}.attn_q", (D, D)),
        k=w.linear(f"{name}.attn_k", (D, D)),
        v=w.linear(f"{name}.attn_v", (D, D)),
        out=w.linear(out, (D, D)),
        ln2=Norm(w.vector(f"{ln2}.weight", (D,)), None) if qk_norm else w.norm(ln2, D),
        up=w.linear(f"{name}.{up}", (F, D)),
        down=w.linear(f"{name}.{down}", (D, F)),
        attn_scale=scales and w.vector(f"{name}.{scales.attn}", (D if scales.each else 1,)),
        mlp_scale=scales and w.vector(f"{name}.{scales.mlp}", (D if scales.each else 1,)),
        qk_norms=(
            (w.vector(f"{name}.attn_q_norm.weight", (D,)), w.vector(f"{name}.attn_k_norm.weight", (D,)))
            if qk_norm
            else None
        ),
    )


def norm(x: Array, w: Norm, b: VitBlock, c: VisionConfig, ops: Ops) -> Array:
    return ops.layer_norm(x, w, c.eps) if b.qk_norms is None else ops.rms_norm(x, w.weight, c.eps)


def attention(x: Array, w: VitBlock, c: VisionConfig, plan: Plan, ops: Ops, tap: Tap = no_tap) -> Array:
    T, D = x.shape
    heads = (T, c.n_head, D // c.n_head)
    q, k, v = ops.linears(x, (w.q, w.k, w.v))
    if w.qk_norms is not None:
        q, k = (ops.rms_norm(y, gain, c.eps) for y, gain in zip((q, k), w.qk_norms, strict=True))
    q, k, v = (tap(name, y).reshape(heads) for name, y in (("Qcur", q), ("Kcur", k), ("Vcur", v)))  # (T, H, dh)
    y = tap("kqv_out", attend(q, KV(k, v), heads[2] ** -0.5, plan, ops, tap))  # (T, D)
    return tap("attn_out", ops.linear(y, w.out))


def mlp(x: Array, w: VitBlock, activation: Activation, ops: Ops, tap: Tap = no_tap) -> Array:
    u = tap("ffn_up", ops.linear(x, w.up))  # (T, F)
    u = tap("ffn_act", ops.activation(u, activation))
    return tap("ffn_out", ops.linear(u, w.down))


def block(
    x: Array, w: VitBlock, c: VisionConfig, activation: Activation, plan: Plan, ops: Ops, tap: Tap = no_tap
) -> Array:
    n = tap("layer_inp_normed", norm(x, w.ln1, w, c, ops))
    h = tap("ffn_inp", x + scaled(attention(n, w, c, plan, ops, tap), w.attn_scale))
    n = tap("ffn_inp_normed", norm(h, w.ln2, w, c, ops))
    return tap("layer_out", h + scaled(mlp(n, w, activation, ops, tap), w.mlp_scale))


def scaled(x: Array, scale: Array | None) -> Array:
    return x if scale is None else x * scale


def blocks(
    x: Array, ws: Iterable[VitBlock], c: VisionConfig, activation: Activation, ops: Ops, tap: Tap = no_tap
) -> Array:
    """Run the blocks one after the other.  (T, D) -> (T, D)"""
    plan = ops.plan(Sees.all(x.shape[0]))
    for i, w in enumerate(ws):
        x = block(x, w, c, activation, plan, ops, scoped(tap, "blk", i))
    return x
