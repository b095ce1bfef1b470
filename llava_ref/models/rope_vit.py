"""The transformer block that Qwen2-VL's, Qwen2.5-VL's and Pixtral's towers share: rope in two directions.

n patches, D width, H heads, dh = D / H, F MLP width. With a gated MLP its norms are RMSNorm (Qwen2.5-VL, Pixtral), else
LayerNorm (Qwen2-VL). Tensor names of llama.cpp b11549, tools/mtmd/clip-impl.h.
"""

from dataclasses import dataclass

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..ops.protocol import KV, Activation, Array, Linear, Norm, Ops, Plan
from ..tracing.trace import Tap
from .config import VisionConfig
from .parts import attend
from .patch_grid import PatchesAt
from .weights import Weights


@dataclass(frozen=True, slots=True)
class RopeVitBlock:
    """The weights of one block; biases are there if the file has them."""

    ln1: Norm
    q: Linear  # (D, D)
    k: Linear  # (D, D)
    v: Linear  # (D, D)
    out: Linear  # (D, D)
    ln2: Norm
    gate: Linear | None  # (F, D)
    up: Linear  # (F, D)
    down: Linear  # (D, F)


def load_blocks(file: GGUFFile, w: Weights, c: VisionConfig, gated: bool) -> tuple[RopeVitBlock, ...]:
    """Take the tensors of all blocks. Raises GGUFError for what is missing or has the wrong shape."""
    return tuple(_load(file, w, f"v.blk.{i}", c.width, gated) for i in range(c.n_stored))


def _load(file: GGUFFile, w: Weights, name: str, D: int, gated: bool) -> RopeVitBlock:
    rows, columns = w.matrix_shape(f"{name}.ffn_up.weight")
    if rows == columns:
        problem = f"is {rows} x {rows}: ffn_up and ffn_down cannot be told from the swapped ones of old files"
        raise GGUFError(file.path, f"{name}.ffn_up.weight", problem)
    # Files of Qwen2-VL's first converter call the first matrix ffn_down and the second ffn_up.
    up, down, F = ("ffn_up", "ffn_down", rows) if columns == D else ("ffn_down", "ffn_up", columns)
    return RopeVitBlock(
        ln1=w.norm(f"{name}.ln1", D),
        q=w.linear(f"{name}.attn_q", (D, D)),
        k=w.linear(f"{name}.attn_k", (D, D)),
        v=w.linear(f"{name}.attn_v", (D, D)),
        out=w.linear(f"{name}.attn_out", (D, D)),
        ln2=w.norm(f"{name}.ln2", D),
        gate=w.linear(f"{name}.ffn_gate", (F, D)) if gated else None,
        up=w.linear(f"{name}.{up}", (F, D)),
        down=w.linear(f"{name}.{down}", (D, F)),
    )


def norm(x: Array, w: Norm, c: VisionConfig, gated: bool, ops: Ops) -> Array:
    return ops.rms_norm(x, w.weight, c.eps) if gated else ops.layer_norm(x, w, c.eps)


def attention(x: Array, w: RopeVitBlock, c: VisionConfig, at: PatchesAt, plan: Plan, ops: Ops, tap: Tap) -> Array:
    heads = (x.shape[0], c.n_head, c.width // c.n_head)
    q, k, v = ops.linears(x, (w.q, w.k, w.v))
    q, k, v = (tap(name, y).reshape(heads) for name, y in (("Qcur", q), ("Kcur", k), ("Vcur", v)))  # (n, H, dh)
    q = tap("Qcur_rope", ops.rope(q, at.cos, at.sin, at.pairs))
    k = tap("Kcur_rope", ops.rope(k, at.cos, at.sin, at.pairs))
    y = tap("kqv_out", attend(q, KV(k, v), heads[2] ** -0.5, plan, ops, tap))  # (n, D)
    return tap("attn_out", ops.linear(y, w.out))


def mlp(x: Array, w: RopeVitBlock, activation: Activation, ops: Ops, tap: Tap) -> Array:
    if w.gate is None:
        u = tap("ffn_act", ops.activation(tap("ffn_up", ops.linear(x, w.up)), activation))
    else:
        gate, up = ops.linears(x, (w.gate, w.up))
        gate, up = tap("ffn_gate", gate), tap("ffn_up", up)  # (n, F)
        u = tap("ffn_act", ops.gated(gate, up, activation))
    return tap("ffn_out", ops.linear(u, w.down))


def block(
    x: Array, w: RopeVitBlock, c: VisionConfig, activation: Activation, at: PatchesAt, plan: Plan, ops: Ops, tap: Tap
) -> Array:
    gated = w.gate is not None
    n = tap("layer_inp_normed", norm(x, w.ln1, c, gated, ops))
    h = tap("ffn_inp", x + attention(n, w, c, at, plan, ops, tap))
    n = tap("ffn_inp_normed", norm(h, w.ln2, c, gated, ops))
    return tap("layer_out", h + mlp(n, w, activation, ops, tap))
