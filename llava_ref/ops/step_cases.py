"""A small decoder of random matrices, and its forward pass for one token: what a stepper is checked against.

D width, H query heads, Hkv key/value heads, dh head size, F MLP width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np

from ..gguf.file import TensorView
from .arrays import Activation, Array, Cache, Linear, Pairs
from .protocol import Ops
from .sees import Sees
from .step import StepLayer, StepPlan

D, H, HKV, DH, F, V, LAYERS, EPS = 256, 4, 2, 32, 512, 70, 2, 1e-5


@dataclass(frozen=True, slots=True)
class Style:
    """What differs between decoders."""

    kinds: dict[str, str]
    """Weight type of a matrix; Q8_0 for one that is not named."""
    pairs: Pairs = "adjacent"
    activation: Activation = "silu"
    window: int | None = None
    norms: bool = False
    """Whether heads are normalised, and the results of attention and MLP."""
    bias: bool = False
    """Whether q, k and v have a bias."""


STYLES = {
    "llama": Style({"v": "Q6_K", "down": "Q6_K", "q": "Q4_K", "k": "Q4_K", "gate": "Q4_K", "up": "Q4_K"}),
    "gemma": Style({}, "halves", "gelu_tanh", window=3, norms=True),
    "float16": Style(dict.fromkeys(("q", "k", "v", "out", "gate", "up", "down", "embd", "output"), "F16"), bias=True),
}


def decoder(tensor: Callable[[str, int, int], TensorView], style: Style, ops: Ops) -> StepPlan:
    """Return a decoder of random blocks: `tensor(type, rows, columns)`, of which each matrix leaves out more rows."""
    numbers = count(1)

    def linear(name: str, rows: int, columns: int, bias: bool = False) -> Linear:
        kind, skipped = style.kinds.get(name, "Q8_0"), next(numbers)
        data = tensor(kind, skipped + rows, columns).data
        view = TensorView(name, kind, (rows, columns), data[skipped * len(data) // (skipped + rows) :])
        return Linear(ops.matrix(view), _gain(ops, rows, 3) if bias else None)

    def layer() -> StepLayer:
        q, k, v = (linear(n, heads * DH, D, style.bias) for n, heads in (("q", H), ("k", HKV), ("v", HKV)))
        return StepLayer(
            _gain(ops, D), q, k, v, linear("out", D, H * DH), _gain(ops, D, 1), linear("gate", F, D),
            linear("up", F, D), linear("down", D, F), _angles, style.window,
            head_norms=(_gain(ops, DH), _gain(ops, DH, 1)) if style.norms else None,
            post_norms=(_gain(ops, D, 2), _gain(ops, D, 3)) if style.norms else None,
        )  # fmt: skip

    layers = tuple(layer() for _ in range(LAYERS))
    embd, output = linear("embd", V, D).weight, linear("output", V, D)
    return StepPlan(
        embd, 3.0, layers, _gain(ops, D), output, EPS, H, HKV, DH, DH**-0.5, style.pairs, style.activation
    )  # fmt: skip


def _gain(ops: Ops, n: int, seed: int = 0) -> Array:
    return ops.array((1 + np.random.default_rng([seed, n]).standard_normal(n) / 4).astype(np.float32))


def _angles(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    angle = positions[:, None] * 100.0 ** (-np.arange(DH // 2) / (DH // 2))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def forward(p: StepPlan, token: int, ops: Ops, cache: Cache) -> Array:
    """Run one token through a decoder, operation by operation.  -> logits (V,)"""
    key = np.arange(cache.length + 1)
    x = p.embd.rows([token]) * p.embd_scale
    for i, layer in enumerate(p.layers):
        attended = _attention(p, layer, ops.rms_norm(x, layer.attn_norm, p.eps), i, key, ops, cache)
        x = x + _normed(attended, layer, 0, p, ops)
        gate, up = ops.linears(ops.rms_norm(x, layer.ffn_norm, p.eps), (layer.gate, layer.up))
        x = x + _normed(ops.linear(ops.gated(gate, up, p.activation), layer.down), layer, 1, p, ops)
    cache.advance(1)
    return ops.linear(ops.rms_norm(x, p.norm, p.eps), p.output)[0]


def _attention(p: StepPlan, w: StepLayer, x: Array, layer: int, key: np.ndarray, ops: Ops, cache: Cache) -> Array:
    q, k, v = (y.reshape((1, -1, p.head_size)) for y in ops.linears(x, (w.q, w.k, w.v)))
    if w.head_norms is not None:
        q, k = (ops.rms_norm(y, gain, p.eps) for y, gain in zip((q, k), w.head_norms, strict=True))
    cos, sin = (ops.array(x) for x in w.angles(key[-1:]))
    q, k = (ops.rope(y, cos, sin, p.pairs) for y in (q, k))
    plan = ops.plan(Sees(key[-1:], key, window=w.window))
    return ops.linear(ops.attention(q, cache.append(layer, k, v), p.scale, plan), w.out)


def _normed(x: Array, w: StepLayer, which: int, p: StepPlan, ops: Ops) -> Array:
    return x if w.post_norms is None else ops.rms_norm(x, w.post_norms[which], p.eps)
