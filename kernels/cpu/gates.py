"""Apply an activation to every number, and multiply by the second half of a gated MLP.

Each is x times a sigmoid or a normal distribution function: one exponential and one division for 16 numbers.
"""

from collections.abc import Callable
from functools import partial

from llava_ref.ops.arrays import Activation

from .compiled import Kernel
from .exponential import exp
from .lanes import absolute, choose, fma, less
from .launch import Launch, arguments
from .simd import f32x16, load, load_some, store, store_some, words
from .traced import Number, Value, least, loop, otherwise, when

BLOCK = 1024  # numbers of an item
GRAIN = 4  # items that are worth a thread


def _scaled_erfc(t: Value) -> Value:
    """Return erfc(z) e^(z^2) for t = 1 / (1 + z / 2), z >= 0: a polynomial fitted to 1.6e-7 of it."""
    y = fma(-0.025329040, t, 0.063568167)
    y = fma(y, t, 0.032481375)
    y = fma(y, t, -0.20037058)
    y = fma(y, t, 0.080605854)
    y = fma(y, t, 0.057834840)
    y = fma(y, t, 0.18050856)
    y = fma(y, t, 0.24650112)
    y = fma(y, t, 0.28210481)
    return fma(y, t, 0.28209474) * t


def _times_sigmoid(x: Value, z: Value) -> Value:
    """Return x / (1 + e^-z)."""
    return x / (1.0 + exp(0.0 - z))


def _silu(x: Value) -> Value:
    return _times_sigmoid(x, x)


def _gelu_quick(x: Value) -> Value:
    return _times_sigmoid(x, x * 1.702)


def _gelu_tanh(x: Value) -> Value:
    """Return x sigmoid(2 u), which is x (1 + tanh u) / 2."""
    twice = x * 1.5957691216057308  # 2 sqrt(2 / pi)
    return _times_sigmoid(x, twice * fma(x * x, 0.044715, 1.0))


def _gelu_erf(x: Value) -> Value:
    """Return x erfc(-x / sqrt 2) / 2, from the side where erfc is small."""
    z = absolute(x) * 0.7071067811865476
    t = 1.0 / fma(z, 0.5, 1.0)
    tail = _scaled_erfc(t) * exp(0.0 - z * z) * 0.5
    return x * choose(less(x, 0.0), tail, 1.0 - tail)


def _over(activation: Callable[[Value], Value], args: Number, first: Number, end: Number) -> None:
    """Apply an activation to blocks, and multiply by `up` where there is one."""
    gate, up, out, n = words(args, 4)
    start, last = BLOCK * first, least(BLOCK * end, n)
    rest = (last - start) % 16
    for at in loop(4 * start, 4 * (last - rest), 64):
        y = activation(load(f32x16, gate + at))
        with when(up != 0):
            store(y * load(f32x16, up + at), out + at)
        with otherwise(up != 0):
            store(y, out + at)
    with when(rest != 0):
        at = 4 * (last - rest)
        y = activation(load_some(f32x16, rest, gate + at))
        with when(up != 0):
            store_some(y * load_some(f32x16, rest, up + at), rest, out + at)
        with otherwise(up != 0):
            store_some(y, rest, out + at)


ACTIVATIONS: dict[Activation, Callable[[Value], Value]] = {
    "silu": _silu,
    "gelu_quick": _gelu_quick,
    "gelu_tanh": _gelu_tanh,
    "gelu_erf": _gelu_erf,
}
KERNELS = {kind: Kernel(f"gates.{kind}", partial(_over, activation)) for kind, activation in ACTIVATIONS.items()}


def gate(gate: int, up: int, out: int, n: int, kind: Activation) -> Launch:
    """Return activation(gate) * up for n numbers, or the activation alone where `up` is 0.

    Arrays are addresses of float32; `out` may be either. Raises KeyError for a kind that is not one."""
    return Launch(KERNELS[kind], arguments(gate, up, out, n), -(-n // BLOCK), GRAIN)
