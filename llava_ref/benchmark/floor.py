"""Count the bytes that one decoded token must read: no program is faster than memory gives them.

The weights count as the file stores them, and keys and values as float16, whatever a precision makes of either, so that
the same file has the same floor everywhere.
"""

from math import prod

from ..gguf.types import TYPES
from ..ops.arrays import Array, Linear, Matrix
from ..ops.step import StepLayer, StepPlan

HALF, SINGLE = 2, 4  # bytes of a float16, of a float32


def bytes_of_token(plan: StepPlan, position: int) -> int:
    """Return the bytes of the weights, and of the keys and values of the positions before this one."""
    ends = _vector(plan.norm) + _linear(plan.output) + _matrix(plan.embd) // plan.embd.shape[0]
    cached = sum(min(position, layer.window or position) for layer in plan.layers)
    return ends + sum(map(_layer, plan.layers)) + cached * 2 * plan.n_head_kv * plan.head_size * HALF


def _layer(layer: StepLayer) -> int:
    linears = (layer.q, layer.k, layer.v, layer.out, layer.gate, layer.up, layer.down)
    norms = (layer.attn_norm, layer.ffn_norm, *(layer.head_norms or ()), *(layer.post_norms or ()))
    return sum(map(_linear, linears)) + sum(map(_vector, norms))


def _linear(w: Linear) -> int:
    return _matrix(w.weight) + (0 if w.bias is None else _vector(w.bias))


def _matrix(w: Matrix) -> int:
    block = TYPES[w.type]
    return prod(w.shape) // block.weights * block.bytes


def _vector(x: Array) -> int:
    return prod(x.shape) * SINGLE
