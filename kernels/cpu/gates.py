"""Apply an activation to every number, and multiply by the second half of a gated MLP.

Each is x times a sigmoid or a normal distribution function: one exponential and one division for 16 numbers.
"""

import numpy as np
from numba import njit

from llava_ref.ops.arrays import Activation

from .exponential import exp
from .functions import Kernel, inlined, kernel
from .lanes import absolute, choose, fma, less
from .launch import Launch, arguments
from .simd import f32x16, load, load_some, splat, store, store_some
from .words import words

F = np.float32
BLOCK = 1024  # numbers of an item
GRAIN = 4  # items that are worth a thread
FOUR = words(4)


@inlined
def _scaled_erfc(t):
    """Return erfc(z) e^(z^2) for t = 1 / (1 + z / 2), z >= 0: a polynomial fitted to 1.6e-7 of it."""
    y = fma(splat(f32x16, F(-0.025329040)), t, splat(f32x16, F(0.063568167)))
    y = fma(y, t, splat(f32x16, F(0.032481375)))
    y = fma(y, t, splat(f32x16, F(-0.20037058)))
    y = fma(y, t, splat(f32x16, F(0.080605854)))
    y = fma(y, t, splat(f32x16, F(0.057834840)))
    y = fma(y, t, splat(f32x16, F(0.18050856)))
    y = fma(y, t, splat(f32x16, F(0.24650112)))
    y = fma(y, t, splat(f32x16, F(0.28210481)))
    return fma(y, t, splat(f32x16, F(0.28209474))) * t


@inlined
def _times_sigmoid(x, z):
    """Return x / (1 + e^-z)."""
    return x / (splat(f32x16, F(1)) + exp(splat(f32x16, F(0)) - z))


@inlined
def _silu(x):
    return _times_sigmoid(x, x)


@inlined
def _gelu_quick(x):
    return _times_sigmoid(x, x * splat(f32x16, F(1.702)))


@inlined
def _gelu_tanh(x):
    """Return x sigmoid(2 u), which is x (1 + tanh u) / 2."""
    twice = x * splat(f32x16, F(1.5957691216057308))  # 2 sqrt(2 / pi)
    return _times_sigmoid(x, twice * fma(x * x, splat(f32x16, F(0.044715)), splat(f32x16, F(1))))


@inlined
def _gelu_erf(x):
    """Return x erfc(-x / sqrt 2) / 2, from the side where erfc is small."""
    z = absolute(x) * splat(f32x16, F(0.7071067811865476))
    t = splat(f32x16, F(1)) / fma(z, splat(f32x16, F(0.5)), splat(f32x16, F(1)))
    tail = _scaled_erfc(t) * exp(splat(f32x16, F(0)) - z * z) * splat(f32x16, F(0.5))
    return x * choose(less(x, splat(f32x16, F(0))), tail, splat(f32x16, F(1)) - tail)


@njit(inline="always")
def _over(args, first, end, activation):
    """Apply an activation to blocks, and multiply by `up` where there is one."""
    gate, up, out, n = FOUR(args)
    start, last = BLOCK * first, min(BLOCK * end, n)
    rest = (last - start) % 16
    for at in range(4 * start, 4 * (last - rest), 64):
        y = activation(load(f32x16, gate + at))
        store(y * load(f32x16, up + at) if up else y, out + at)
    if rest:
        at = 4 * (last - rest)
        y = activation(load_some(f32x16, rest, gate + at))
        store_some(y * load_some(f32x16, rest, up + at) if up else y, rest, out + at)


@kernel
def silu(args, first, end):
    _over(args, first, end, _silu)


@kernel
def gelu_quick(args, first, end):
    _over(args, first, end, _gelu_quick)


@kernel
def gelu_tanh(args, first, end):
    _over(args, first, end, _gelu_tanh)


@kernel
def gelu_erf(args, first, end):
    _over(args, first, end, _gelu_erf)


KERNELS: dict[Activation, Kernel] = {
    "silu": silu,
    "gelu_quick": gelu_quick,
    "gelu_tanh": gelu_tanh,
    "gelu_erf": gelu_erf,
}


def gate(gate: int, up: int, out: int, n: int, kind: Activation) -> Launch:
    """Return activation(gate) * up for n numbers, or the activation alone where `up` is 0.

    Arrays are addresses of float32; `out` may be either. Raises KeyError for a kind that is not one."""
    return Launch(KERNELS[kind], arguments(gate, up, out, n), -(-n // BLOCK), GRAIN)
