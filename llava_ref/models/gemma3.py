"""Gemma 3's decoder.   T new positions, S all so far, D width, H query heads, Hkv key/value heads, dh head size, F MLP
width, V vocabulary.

Gemma 3 report, https://arxiv.org/abs/2503.19786, section 2. Unlike llama: five layers of six see a window only and
have a rope base of their own; queries and keys are normalised per head; each branch is normalised before it is added,
too; the MLP's gate is a GELU; embeddings of tokens, not those of pictures, are multiplied by sqrt(D); the rows of a
picture see one another. Keys, tensor names and defaults of llama.cpp b11549, src/models/gemma3.cpp; transformers
5.24, models/gemma3/modeling_gemma3.py. Files hold the gains of norms with the 1 already added.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..ops.protocol import Array, Cache, Linear, Matrix, Ops
from ..ops.sees import Sees
from ..ops.step import Angles, StepLayer, StepPlan
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import rope
from .config import TextConfig, read_text
from .llama import Where, where
from .parts import attend
from .rope import RopeConfig
from .stages import Stage, Table
from .weights import Weights

LAYERS_27B = 62  # the one size whose scale is not that of its heads (llama.cpp b11549, src/models/gemma3.cpp)
PATTERN, LOCAL_BASE, ACTIVATION = "attention.sliding_window_pattern", "rope.freq_base_swa", "hidden_activation"
_B, _HB = "blk.{i}", "language_model.layers.{i}"
TABLE = Table(
    "blk",
    before=(Stage("embd", "T D", "exact", None, "inp_scaled, and the rows of a picture", "< language_model.layers.0"),),
    block=(
        Stage("attn_norm", "T D", "float", None, "attn_norm-{i}", f"{_HB}.input_layernorm"),
        Stage("Qcur", "T H*dh", "matmul", f"{_B}.attn_q.weight", "Qcur-{i} (MUL_MAT)", f"{_HB}.self_attn.q_proj"),
        Stage("Kcur", "T Hkv*dh", "matmul", f"{_B}.attn_k.weight", "Kcur-{i} (MUL_MAT)", f"{_HB}.self_attn.k_proj"),
        Stage("Vcur", "T Hkv*dh", "matmul", f"{_B}.attn_v.weight", "Vcur-{i} (MUL_MAT)", f"{_HB}.self_attn.v_proj"),
        Stage("Qcur_normed", "T H dh", "float", None, "Qcur_normed-{i}", f"{_HB}.self_attn.q_norm"),
        Stage("Kcur_normed", "T Hkv dh", "float", None, "Kcur_normed-{i}", f"{_HB}.self_attn.k_norm"),
        Stage("Qcur_rope", "T H dh", "float", None, "Qcur-{i} (ROPE)", f"{_HB}.self_attn, after apply_rotary_pos_emb"),
        Stage(
            "Kcur_rope", "T Hkv dh", "float", None, "Kcur-{i} (ROPE)", f"{_HB}.self_attn, after apply_rotary_pos_emb"
        ),
        Stage("kq_soft_max", "H T T", "attention", None, "kq_soft_max-{i}", f"{_HB}.self_attn, weights"),
        Stage("kqv_out", "T H*dh", "attention", None, "kqv_out-{i}", f"< {_HB}.self_attn.o_proj"),
        Stage("attn_out", "T D", "matmul", f"{_B}.attn_output.weight", "node (MUL_MAT)", f"{_HB}.self_attn.o_proj"),
        Stage("attn_post_norm", "T D", "float", None, "attn_post_norm-{i}", f"{_HB}.post_attention_layernorm"),
        Stage("ffn_inp", "T D", "float", None, "sa_out-{i}", f"< {_HB}.pre_feedforward_layernorm"),
        Stage("ffn_norm", "T D", "float", None, "ffn_norm-{i}", f"{_HB}.pre_feedforward_layernorm"),
        Stage("ffn_gate", "T F", "matmul", f"{_B}.ffn_gate.weight", "ffn_gate-{i}", f"{_HB}.mlp.gate_proj"),
        Stage("ffn_up", "T F", "matmul", f"{_B}.ffn_up.weight", "ffn_up-{i}", f"{_HB}.mlp.up_proj"),
        Stage("ffn_geglu", "T F", "table", None, "ffn_geglu-{i}", f"< {_HB}.mlp.down_proj"),
        Stage("ffn_out", "T D", "matmul", f"{_B}.ffn_down.weight", "ffn_out-{i}", f"{_HB}.mlp.down_proj"),
        Stage("ffn_post_norm", "T D", "float", None, "ffn_post_norm-{i}", f"{_HB}.post_feedforward_layernorm"),
        Stage("out", "T D", "float", None, "l_out-{i}", _HB),
    ),
    behind=(
        Stage("result_norm", "T D", "float", None, "result_norm", "language_model.norm"),
        Stage("result_output", "T V", "matmul", "output.weight", "result_output", "lm_head"),
    ),
)


@dataclass(frozen=True, slots=True)
class Gemma3Config:
    """Settings of the decoder: those that every decoder has, and what a layer that sees a window only has instead."""

    text: TextConfig  # `rope` is of the layers that see everything, `window` of the others
    local_rope: RopeConfig
    period: int  # the last of so many layers sees everything

    def local(self, layer: int) -> bool:
        """Say whether a layer sees a window only."""
        return self.text.window is not None and (layer + 1) % self.period != 0


def read(file: GGUFFile) -> Gemma3Config:
    """Read the decoder's settings. Raises GGUFError with the key that is missing, mistyped or impossible."""
    c = read_text(file, "gemma3", obeyed=[PATTERN, LOCAL_BASE, ACTIVATION])
    activation = file.string(f"gemma3.{ACTIVATION}", "")
    if activation not in ("", "gelu_pytorch_tanh"):
        problem = f"{activation!r} is not supported, expected 'gelu_pytorch_tanh'"
        raise GGUFError(file.path, f"gemma3.{ACTIVATION}", problem)
    if c.rope.scaling == "yarn":
        raise GGUFError(file.path, "gemma3.rope.scaling.type", "'yarn' is not supported, expected none or linear")
    if c.n_layer == LAYERS_27B:
        c = replace(c, attention_scale=1 / math.sqrt(c.width // c.n_head))
    base = file.number(f"gemma3.{LOCAL_BASE}", 1.0, 1e12, 10000.0)
    local = replace(c.rope, base=base, scaling="none", factor=1.0)
    return Gemma3Config(c, local, file.integer(f"gemma3.{PATTERN}", 1, 1 << 10, 6))


@dataclass(frozen=True, slots=True)
class Gemma3Block:
    """The weights of one block. No matrix has a bias."""

    attn_norm: Array  # (D,)
    q: Linear  # (H * dh, D)
    k: Linear  # (Hkv * dh, D)
    v: Linear  # (Hkv * dh, D)
    q_norm: Array  # (dh,)
    k_norm: Array  # (dh,)
    out: Linear  # (D, H * dh)
    attn_post_norm: Array  # (D,)
    ffn_norm: Array  # (D,)
    gate: Linear  # (F, D)
    up: Linear  # (F, D)
    down: Linear  # (D, F)
    ffn_post_norm: Array  # (D,)


@dataclass(frozen=True, slots=True)
class Gemma3Weights:
    embd: Matrix  # (V, D)
    blocks: tuple[Gemma3Block, ...]
    norm: Array  # (D,)
    output: Linear  # (V, D); the embedding itself where the file has no output.weight
    frequencies: np.ndarray  # (dh / 2,) float64: rotary angle per position, in layers that see everything
    local_frequencies: np.ndarray  # (dh / 2,) float64: in the others


def load(file: GGUFFile, ops: Ops, s: Gemma3Config) -> Gemma3Weights:
    """Take the tensors. Raises GGUFError for what is missing, has the wrong shape, or has no use."""
    c, w = s.text, Weights(file, ops)
    D, V = c.width, c.n_vocab
    embd = w.matrix("token_embd.weight", (V, D))
    weights = Gemma3Weights(
        embd=embd,
        blocks=tuple(_load_block(w, f"blk.{i}", c) for i in range(c.n_layer)),
        norm=w.vector("output_norm.weight", (D,)),
        output=Linear(w.matrix("output.weight", (V, D)) if w.has("output.weight") else embd),
        frequencies=rope.frequencies(c.rope, None),
        local_frequencies=rope.frequencies(s.local_rope, None),
    )
    w.finish()
    return weights


def _load_block(w: Weights, name: str, c: TextConfig) -> Gemma3Block:
    D, F, dh, Q, KV = c.width, c.mlp_width, c.head_size, c.n_head * c.head_size, c.n_head_kv * c.head_size
    return Gemma3Block(
        attn_norm=w.vector(f"{name}.attn_norm.weight", (D,)),
        q=Linear(w.matrix(f"{name}.attn_q.weight", (Q, D))),
        k=Linear(w.matrix(f"{name}.attn_k.weight", (KV, D))),
        v=Linear(w.matrix(f"{name}.attn_v.weight", (KV, D))),
        q_norm=w.vector(f"{name}.attn_q_norm.weight", (dh,)),
        k_norm=w.vector(f"{name}.attn_k_norm.weight", (dh,)),
        out=Linear(w.matrix(f"{name}.attn_output.weight", (D, Q))),
        attn_post_norm=w.vector(f"{name}.post_attention_norm.weight", (D,)),
        ffn_norm=w.vector(f"{name}.ffn_norm.weight", (D,)),
        gate=Linear(w.matrix(f"{name}.ffn_gate.weight", (F, D))),
        up=Linear(w.matrix(f"{name}.ffn_up.weight", (F, D))),
        down=Linear(w.matrix(f"{name}.ffn_down.weight", (D, F))),
        ffn_post_norm=w.vector(f"{name}.post_ffw_norm.weight", (D,)),
    )


def attention(
    x: Array, w: Gemma3Block, c: TextConfig, at: Where, cache: Cache, layer: int, ops: Ops, tap: Tap = no_tap
) -> Array:
    T = x.shape[0]
    q, k, v = ops.linears(x, (w.q, w.k, w.v))
    q = tap("Qcur", q).reshape((T, c.n_head, c.head_size))
    k = tap("Kcur", k).reshape((T, c.n_head_kv, c.head_size))
    v = tap("Vcur", v).reshape((T, c.n_head_kv, c.head_size))
    q = tap("Qcur_normed", ops.rms_norm(q, w.q_norm, c.eps))
    k = tap("Kcur_normed", ops.rms_norm(k, w.k_norm, c.eps))
    q = tap("Qcur_rope", ops.rope(q, at.cos, at.sin, at.pairs))
    k = tap("Kcur_rope", ops.rope(k, at.cos, at.sin, at.pairs))
    kv = cache.append(layer, k, v)  # (S, Hkv, dh)
    q = q * c.attention_scale  # before attention, as llama.cpp does: its float16 attention rounds the product
    y = tap("kqv_out", attend(q, kv, 1.0, at.plan, ops, tap))  # (T, H * dh)
    return tap("attn_out", ops.linear(y, w.out))


def mlp(x: Array, w: Gemma3Block, ops: Ops, tap: Tap = no_tap) -> Array:
    gate, up = ops.linears(x, (w.gate, w.up))
    gate, up = tap("ffn_gate", gate), tap("ffn_up", up)  # (T, F)
    h = tap("ffn_geglu", ops.gated(gate, up, "gelu_tanh"))
    return tap("ffn_out", ops.linear(h, w.down))


def block(
    x: Array, w: Gemma3Block, c: TextConfig, at: Where, cache: Cache, layer: int, ops: Ops, tap: Tap = no_tap
) -> Array:
    y = attention(tap("attn_norm", ops.rms_norm(x, w.attn_norm, c.eps)), w, c, at, cache, layer, ops, tap)
    h = tap("ffn_inp", x + tap("attn_post_norm", ops.rms_norm(y, w.attn_post_norm, c.eps)))
    y = mlp(tap("ffn_norm", ops.rms_norm(h, w.ffn_norm, c.eps)), w, ops, tap)
    return tap("out", h + tap("ffn_post_norm", ops.rms_norm(y, w.ffn_post_norm, c.eps)))


def _step_layer(w: Gemma3Block, angles: Angles, window: int | None) -> StepLayer:
    return StepLayer(
        w.attn_norm, w.q, w.k, w.v, w.out, w.ffn_norm, w.gate, w.up, w.down, angles, window,
        head_norms=(w.q_norm, w.k_norm), post_norms=(w.attn_post_norm, w.ffn_post_norm),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gemma3:
    """The decoder with its weights: `family.TextModel`."""

    ORIGINAL: ClassVar[str] = "hf"
    WHOLE_PICTURES: ClassVar[bool] = True
    GRID_POSITIONS: ClassVar[bool] = False
    file: GGUFFile
    settings: Gemma3Config
    weights: Gemma3Weights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "Gemma3":
        settings = read(file)
        return cls(file, settings, load(file, ops, settings), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        c = read(file)
        seen = {"period": c.period, "local_blocks": [i for i in range(c.text.n_layer) if c.local(i)]}
        return c.text.about() | {"local_rope": c.local_rope.about(), **seen}

    @property
    def config(self) -> TextConfig:
        return self.settings.text

    def embed(self, ids: Sequence[int]) -> Array:
        return self.weights.embd.rows(ids) * math.sqrt(self.config.width)

    def forward(self, x: Array, sees: Sees, positions: np.ndarray, cache: Cache, ops: Ops, tap: Tap = no_tap) -> Array:
        c, s, w = self.config, self.settings, self.weights
        everywhere = where(c.rope, w.frequencies, "halves", sees, positions, ops)
        nearby = where(s.local_rope, w.local_frequencies, "halves", replace(sees, window=c.window), positions, ops)
        x = tap("embd", x)
        for i, weights in enumerate(w.blocks):
            at = nearby if s.local(i) else everywhere
            x = block(x, weights, c, at, cache, i, ops, scoped(tap, "blk", i))
        cache.advance(x.shape[0])
        return x

    def logits(self, x: Array, ops: Ops, tap: Tap = no_tap) -> Array:
        n = tap("result_norm", ops.rms_norm(x, self.weights.norm, self.config.eps))
        return tap("result_output", ops.linear(n, self.weights.output))

    def step_plan(self) -> StepPlan:
        c, s, w = self.config, self.settings, self.weights
        everywhere = partial(rope.cos_sin, c.rope, w.frequencies)
        nearby = partial(rope.cos_sin, s.local_rope, w.local_frequencies)
        layers = [
            _step_layer(block, *((nearby, c.window) if s.local(i) else (everywhere, None)))
            for i, block in enumerate(w.blocks)
        ]
        return StepPlan(
            w.embd, math.sqrt(c.width), tuple(layers), w.norm, w.output,
            c.eps, c.n_head, c.n_head_kv, c.head_size, c.attention_scale, "halves", "gelu_tanh",
        )  # fmt: skip

    def stages(self) -> tuple[Stage, ...]:
        return tuple(TABLE.run(self.config.n_layer))
