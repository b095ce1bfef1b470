"""The llama decoder: embeddings -> logits.   T new positions, S all so far, D width, H query heads, Hkv key/value
heads, dh head size, F MLP width, V vocabulary.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971; Mistral's sliding window: https://arxiv.org/abs/2310.06825.
Tensor names of llama.cpp b10605, src/llama-arch.cpp.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from ..ops.protocol import Array, Ops, Weight
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import rope
from .config import TextConfig
from .kv import KVCache
from .parts import attend
from .weights import Affine, Weights


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One transformer block; biases are there if the file has them."""

    attn_norm: Weight  # (D,)
    q: Affine  # (H * dh, D)
    k: Affine  # (Hkv * dh, D)
    v: Affine  # (Hkv * dh, D)
    out: Affine  # (D, H * dh)
    ffn_norm: Weight  # (D,)
    gate: Affine  # (F, D)
    up: Affine  # (F, D)
    down: Affine  # (D, F)


@dataclass(frozen=True, slots=True)
class TextWeights:
    embd: Weight  # (V, D)
    blocks: tuple[BlockWeights, ...]
    norm: Weight  # (D,)
    output: Affine  # (V, D); the embedding itself where the file has no output.weight
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


def load(w: Weights, c: TextConfig) -> TextWeights:
    """Takes the decoder's tensors. GGUFError names what is missing or has the wrong shape."""
    D, V = c.width, c.n_vocab
    embd = w.take("token_embd.weight", (V, D))
    return TextWeights(
        embd=embd,
        blocks=tuple(_load_block(w, f"blk.{i}", c) for i in range(c.n_layer)),
        norm=w.take("output_norm.weight", (D,)),
        output=w.maybe_affine("output", (V, D)) or Affine(embd, None),
        frequencies=rope.frequencies(c.rope, w.divisors("rope_freqs.weight", c.rope.n_rot // 2)),
    )


def _load_block(w: Weights, name: str, c: TextConfig) -> BlockWeights:
    D, F, Q, KV = c.width, c.mlp_width, c.n_head * c.head_size, c.n_head_kv * c.head_size
    return BlockWeights(
        attn_norm=w.take(f"{name}.attn_norm.weight", (D,)),
        q=w.affine(f"{name}.attn_q", (Q, D)),
        k=w.affine(f"{name}.attn_k", (KV, D)),
        v=w.affine(f"{name}.attn_v", (KV, D)),
        out=w.affine(f"{name}.attn_output", (D, Q)),
        ffn_norm=w.take(f"{name}.ffn_norm.weight", (D,)),
        gate=w.affine(f"{name}.ffn_gate", (F, D)),
        up=w.affine(f"{name}.ffn_up", (F, D)),
        down=w.affine(f"{name}.ffn_down", (D, F)),
    )


@dataclass(frozen=True, slots=True)
class Positions:
    """What a stretch of positions needs besides its rows, the same in every layer."""

    cos: Array  # (T, dh / 2)
    sin: Array  # (T, dh / 2)
    mask: Array | None  # (T, S): 0 where a position may look, -inf where not; None: everywhere


def positions(c: TextConfig, frequencies: np.ndarray, first: int, count: int, ops: Ops) -> Positions:
    """Positions first..first+count-1: each sees itself and those before it, at most `window` in all."""
    cos, sin = rope.cos_sin(c.rope, frequencies, first, count)
    query, key = np.arange(first, first + count)[:, None], np.arange(first + count)[None, :]
    hidden = key > query
    if c.window is not None:
        hidden |= query - key >= c.window
    mask = ops.array(np.where(hidden, -np.inf, 0)) if hidden.any() else None
    return Positions(ops.array(cos), ops.array(sin), mask)


def attention(
    x: Array, w: BlockWeights, c: TextConfig, at: Positions, cache: KVCache, layer: int, ops: Ops, tap: Tap = no_tap
) -> Array:
    T = x.shape[0]
    q = tap("Qcur", ops.linear(x, w.q.weight, w.q.bias)).reshape((T, c.n_head, c.head_size))
    k = tap("Kcur", ops.linear(x, w.k.weight, w.k.bias)).reshape((T, c.n_head_kv, c.head_size))
    v = tap("Vcur", ops.linear(x, w.v.weight, w.v.bias)).reshape((T, c.n_head_kv, c.head_size))
    q = tap("Qcur_rope", ops.rope(q, at.cos, at.sin))
    k = tap("Kcur_rope", ops.rope(k, at.cos, at.sin))
    keys, values = cache.append(layer, k, v)  # (S, Hkv, dh)
    y = tap("kqv_out", attend(q, keys, values, c.attention_scale, at.mask, ops, tap))  # (T, H * dh)
    return tap("attn_out", ops.linear(y, w.out.weight, w.out.bias))


def mlp(x: Array, w: BlockWeights, ops: Ops, tap: Tap = no_tap) -> Array:
    gate = tap("ffn_gate", ops.linear(x, w.gate.weight, w.gate.bias))  # (T, F)
    up = tap("ffn_up", ops.linear(x, w.up.weight, w.up.bias))
    h = tap("ffn_swiglu", ops.activation(gate, "silu") * up)
    return tap("ffn_out", ops.linear(h, w.down.weight, w.down.bias))


def block(
    x: Array, w: BlockWeights, c: TextConfig, at: Positions, cache: KVCache, layer: int, ops: Ops, tap: Tap = no_tap
) -> Array:
    n = tap("attn_norm", ops.rms_norm(x, w.attn_norm, c.eps))
    h = tap("ffn_inp", x + attention(n, w, c, at, cache, layer, ops, tap))
    n = tap("ffn_norm", ops.rms_norm(h, w.ffn_norm, c.eps))
    return tap("out", h + mlp(n, w, ops, tap))


def forward(x: Array, w: TextWeights, c: TextConfig, cache: KVCache, ops: Ops, tap: Tap = no_tap) -> Array:
    """Rows (T, D) at the next T positions -> hidden states (T, D); their keys and values are in the cache."""
    at = positions(c, w.frequencies, cache.length, x.shape[0], ops)
    x = tap("embd", x)
    for i, weights in enumerate(w.blocks):
        x = block(x, weights, c, at, cache, i, ops, scoped(tap, "blk", i))
    cache.advance(x.shape[0])
    return x


def logits(x: Array, w: TextWeights, c: TextConfig, ops: Ops, tap: Tap = no_tap) -> Array:
    """Hidden states (T, D) -> (T, V)"""
    n = tap("result_norm", ops.rms_norm(x, w.norm, c.eps))
    return tap("result_output", ops.linear(n, w.output.weight, w.output.bias))
