"""The llama decoder: Llama, Vicuna, Mistral, SmolLM2.   T new positions, S all so far, D width, H query heads, Hkv
key/value heads, dh head size, F MLP width, V vocabulary.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971; Mistral's sliding window: https://arxiv.org/abs/2310.06825.
Tensor names of llama.cpp b10605, src/llama-arch.cpp.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..gguf.file import GGUFFile
from ..ops.protocol import Array, Cache, Linear, Matrix, Ops, Pairs, Plan
from ..ops.sees import Sees
from ..ops.step import Angles, StepLayer, StepPlan
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import rope
from .config import TextConfig, read_text
from .parts import attend
from .stages import Stage, Table
from .weights import Weights

_B, _HB = "blk.{i}", "language_model.layers.{i}"
TABLE = Table(
    "blk",
    before=(Stage("embd", "T D", "exact", None, "embd, and the rows of a picture", "< language_model.layers.0"),),
    block=(
        Stage("attn_norm", "T D", "float", None, "attn_norm-{i}", f"{_HB}.input_layernorm"),
        Stage("Qcur", "T H*dh", "matmul", f"{_B}.attn_q.weight", "Qcur-{i} (MUL_MAT, ADD)", f"{_HB}.self_attn.q_proj"),
        Stage(
            "Kcur", "T Hkv*dh", "matmul", f"{_B}.attn_k.weight", "Kcur-{i} (MUL_MAT, ADD)", f"{_HB}.self_attn.k_proj"
        ),
        Stage(
            "Vcur", "T Hkv*dh", "matmul", f"{_B}.attn_v.weight", "Vcur-{i} (MUL_MAT, ADD)", f"{_HB}.self_attn.v_proj"
        ),
        Stage("Qcur_rope", "T H dh", "float", None, "Qcur-{i} (ROPE)", f"{_HB}.self_attn, after apply_rotary_pos_emb"),
        Stage(
            "Kcur_rope", "T Hkv dh", "float", None, "Kcur-{i} (ROPE)", f"{_HB}.self_attn, after apply_rotary_pos_emb"
        ),
        Stage("kq_soft_max", "H T T", "attention", None, "kq_soft_max-{i}", f"{_HB}.self_attn, weights"),
        Stage("kqv_out", "T H*dh", "attention", None, "kqv_out-{i}", f"< {_HB}.self_attn.o_proj"),
        Stage("attn_out", "T D", "matmul", f"{_B}.attn_output.weight", "attn_out-{i}", f"{_HB}.self_attn.o_proj"),
        Stage("ffn_inp", "T D", "float", None, "ffn_inp-{i}", f"< {_HB}.post_attention_layernorm"),
        Stage("ffn_norm", "T D", "float", None, "ffn_norm-{i}", f"{_HB}.post_attention_layernorm"),
        Stage("ffn_gate", "T F", "matmul", f"{_B}.ffn_gate.weight", "ffn_gate-{i}", f"{_HB}.mlp.gate_proj"),
        Stage("ffn_up", "T F", "matmul", f"{_B}.ffn_up.weight", "ffn_up-{i}", f"{_HB}.mlp.up_proj"),
        Stage("ffn_swiglu", "T F", "float", None, "ffn_swiglu-{i}", f"< {_HB}.mlp.down_proj"),
        Stage("ffn_out", "T D", "matmul", f"{_B}.ffn_down.weight", "ffn_out-{i}", f"{_HB}.mlp.down_proj"),
        Stage("out", "T D", "float", None, "l_out-{i}", _HB),
    ),
    behind=(
        Stage("result_norm", "T D", "float", None, "result_norm", "language_model.norm"),
        Stage("result_output", "T V", "matmul", "output.weight", "result_output", "lm_head"),
    ),
)


@dataclass(frozen=True, slots=True)
class LlamaBlock:
    """The weights of one block; biases are there if the file has them."""

    attn_norm: Array  # (D,)
    q: Linear  # (H * dh, D)
    k: Linear  # (Hkv * dh, D)
    v: Linear  # (Hkv * dh, D)
    out: Linear  # (D, H * dh)
    ffn_norm: Array  # (D,)
    gate: Linear  # (F, D)
    up: Linear  # (F, D)
    down: Linear  # (D, F)


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    embd: Matrix  # (V, D)
    blocks: tuple[LlamaBlock, ...]
    norm: Array  # (D,)
    output: Linear  # (V, D); the embedding itself where the file has no output.weight
    frequencies: np.ndarray  # (dh / 2,) float64: rotary angle per position


def plan(c: TextConfig, quirks: Quirks) -> TextConfig:
    """Return the settings to run by: those of the file, less what `quirks` ignore."""
    if quirks.window == "ignore":
        c = replace(c, window=None)
    if quirks.attention_scale == "ignore":
        c = replace(c, attention_scale=1 / math.sqrt(c.head_size))
    if quirks.yarn_keys == "ignore":
        c = replace(c, rope=replace(c.rope, yarn_attn_factor=None, beta_fast=32.0, beta_slow=1.0))
    return c


def load(file: GGUFFile, ops: Ops, c: TextConfig) -> LlamaWeights:
    """Take the tensors. Raises GGUFError for what is missing, has the wrong shape, or has no use."""
    D, V, w = c.width, c.n_vocab, Weights(file, ops)
    embd = w.matrix("token_embd.weight", (V, D))
    weights = LlamaWeights(
        embd=embd,
        blocks=tuple(load_block(w, f"blk.{i}", c) for i in range(c.n_layer)),
        norm=w.vector("output_norm.weight", (D,)),
        output=w.linear("output", (V, D)) if w.has("output.weight") else Linear(embd),
        frequencies=rope.frequencies(c.rope, w.divisors("rope_freqs.weight", c.rope.n_rot // 2)),
    )
    w.finish()
    return weights


def load_block(w: Weights, name: str, c: TextConfig, qkv: str = "attn_{}", out: str = "attn_output") -> LlamaBlock:
    """Take the tensors of a block; `qkv` and `out`: names of attention's matrices.

    Raises GGUFError for what is missing or has the wrong shape."""
    D, F, Q, KV = c.width, c.mlp_width, c.n_head * c.head_size, c.n_head_kv * c.head_size
    return LlamaBlock(
        attn_norm=w.vector(f"{name}.attn_norm.weight", (D,)),
        q=w.linear(f"{name}.{qkv.format('q')}", (Q, D)),
        k=w.linear(f"{name}.{qkv.format('k')}", (KV, D)),
        v=w.linear(f"{name}.{qkv.format('v')}", (KV, D)),
        out=w.linear(f"{name}.{out}", (D, Q)),
        ffn_norm=w.vector(f"{name}.ffn_norm.weight", (D,)),
        gate=w.linear(f"{name}.ffn_gate", (F, D)),
        up=w.linear(f"{name}.ffn_up", (F, D)),
        down=w.linear(f"{name}.ffn_down", (D, F)),
    )


@dataclass(frozen=True, slots=True)
class Where:
    """Where a stretch of rows stands: the same in every layer."""

    cos: Array  # (T, dh / 2)
    sin: Array  # (T, dh / 2)
    pairs: Pairs  # which channels turn together
    plan: Plan  # which keys each query sees


def where(
    c: rope.RopeConfig, frequencies: np.ndarray, pairs: Pairs, sees: Sees, positions: np.ndarray, ops: Ops
) -> Where:
    cos, sin = rope.cos_sin(c, frequencies, positions)
    return Where(ops.array(cos), ops.array(sin), pairs, ops.plan(sees))


def attention(
    x: Array, w: LlamaBlock, c: TextConfig, at: Where, cache: Cache, layer: int, ops: Ops, tap: Tap = no_tap
) -> Array:
    T = x.shape[0]
    q, k, v = ops.linears(x, (w.q, w.k, w.v))
    q = tap("Qcur", q).reshape((T, c.n_head, c.head_size))
    k = tap("Kcur", k).reshape((T, c.n_head_kv, c.head_size))
    v = tap("Vcur", v).reshape((T, c.n_head_kv, c.head_size))
    q = tap("Qcur_rope", ops.rope(q, at.cos, at.sin, at.pairs))
    k = tap("Kcur_rope", ops.rope(k, at.cos, at.sin, at.pairs))
    kv = cache.append(layer, k, v)  # (S, Hkv, dh)
    y = tap("kqv_out", attend(q, kv, c.attention_scale, at.plan, ops, tap))  # (T, H * dh)
    return tap("attn_out", ops.linear(y, w.out))


def mlp(x: Array, w: LlamaBlock, ops: Ops, tap: Tap = no_tap) -> Array:
    gate, up = ops.linears(x, (w.gate, w.up))
    gate, up = tap("ffn_gate", gate), tap("ffn_up", up)  # (T, F)
    h = tap("ffn_swiglu", ops.gated(gate, up, "silu"))
    return tap("ffn_out", ops.linear(h, w.down))


def block(
    x: Array, w: LlamaBlock, c: TextConfig, at: Where, cache: Cache, layer: int, ops: Ops, tap: Tap = no_tap
) -> Array:
    n = tap("attn_norm", ops.rms_norm(x, w.attn_norm, c.eps))
    h = tap("ffn_inp", x + attention(n, w, c, at, cache, layer, ops, tap))
    n = tap("ffn_norm", ops.rms_norm(h, w.ffn_norm, c.eps))
    return tap("out", h + mlp(n, w, ops, tap))


def forward(x: Array, w: LlamaWeights, c: TextConfig, at: Where, cache: Cache, ops: Ops, tap: Tap = no_tap) -> Array:
    """Run rows (T, D) at the next T positions -> hidden states (T, D); their keys and values are then in the cache."""
    x = tap("embd", x)
    for i, weights in enumerate(w.blocks):
        x = block(x, weights, c, at, cache, i, ops, scoped(tap, "blk", i))
    cache.advance(x.shape[0])
    return x


def logits(x: Array, w: LlamaWeights, c: TextConfig, ops: Ops, tap: Tap = no_tap) -> Array:
    """Apply the final norm and the output matrix.  (T, D) -> (T, V)"""
    n = tap("result_norm", ops.rms_norm(x, w.norm, c.eps))
    return tap("result_output", ops.linear(n, w.output))


def step_layer(w: LlamaBlock, angles: Angles, window: int | None) -> StepLayer:
    return StepLayer(w.attn_norm, w.q, w.k, w.v, w.out, w.ffn_norm, w.gate, w.up, w.down, angles, window)


@dataclass(frozen=True, slots=True)
class Llama:
    """The decoder with its weights: `family.TextModel`."""

    ORIGINAL: ClassVar[str] = "llava"
    WHOLE_PICTURES: ClassVar[bool] = False
    GRID_POSITIONS: ClassVar[bool] = False
    file: GGUFFile
    config: TextConfig
    weights: LlamaWeights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "Llama":
        config = plan(read_text(file, "llama"), quirks)
        return cls(file, config, load(file, ops, config), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        return plan(read_text(file, "llama"), quirks).about()

    def embed(self, ids: Sequence[int]) -> Array:
        return self.weights.embd.rows(ids)

    def forward(self, x: Array, sees: Sees, positions: np.ndarray, cache: Cache, ops: Ops, tap: Tap = no_tap) -> Array:
        c, w = self.config, self.weights
        at = where(c.rope, w.frequencies, "adjacent", replace(sees, window=c.window), positions, ops)
        return forward(x, w, c, at, cache, ops, tap)

    def logits(self, x: Array, ops: Ops, tap: Tap = no_tap) -> Array:
        return logits(x, self.weights, self.config, ops, tap)

    def step_plan(self) -> StepPlan:
        c, w = self.config, self.weights
        angles = partial(rope.cos_sin, c.rope, w.frequencies)
        return StepPlan(
            w.embd, 1.0, tuple(step_layer(block, angles, c.window) for block in w.blocks), w.norm, w.output,
            c.eps, c.n_head, c.n_head_kv, c.head_size, c.attention_scale, "adjacent", "silu",
        )  # fmt: skip

    def stages(self) -> tuple[Stage, ...]:
        return tuple(TABLE.run(self.config.n_layer))
