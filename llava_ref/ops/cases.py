"""Cases for every operation of `protocol.Ops`: the same call on a backend, and on the definition in float64.

T, S positions, D, K width in, N width out, H query heads, Hkv key/value heads, dh head size, P patch size, F MLP width.
Sizes are odd on purpose: few are a multiple of what a kernel works on at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np

from ..gguf.file import TensorView
from ..gguf.types import TYPES
from .arrays import KV, Activation, Array, Linear, Norm, Pairs
from .protocol import Ops
from .sees import Sees
from .step_cases import STYLES, Style, decoder, forward

RandomTensor = Callable[[str, int, int], TensorView]
"""(type, rows, columns) -> a matrix of random blocks of that type."""
EPS = 1e-5
ROUNDING = 2e-6
"""Largest relative RMS error of float32 arithmetic, which rounds by 6e-8."""
EXACT = {"attention": 2 * ROUNDING, "attention_weights, attention_values": 2 * ROUNDING}
EXACT |= {"stepper": 5 * ROUNDING, "step_together": 5 * ROUNDING}
"""Bounds in precision `exact` beyond that. The exponential multiplies the rounding of a score by the score's size."""
FEW, CODES = 8, 1e-4
"""In precision `fast` products of up to so many rows round to 15 bits or more; this is their bound."""
PRODUCTS = ("product", "linear", "linears", "patches")
MANY = {"cuda": 4e-3, "cpu": 1.4e-2}
"""Bounds of their products with more rows: float16, or bfloat16 for a file in it; bfloat16, or int8 where that wins."""
_CACHED = ("attention_weights, attention_values", "cache", "stepper", "step_together")
HALVES = {
    "cuda": dict.fromkeys(("attention", *_CACHED), 1e-3),
    "cpu": {"attention": 4e-3} | dict.fromkeys(_CACHED, 2e-3),
}
"""Bounds where keys and values are of 16 bits; on a processor a tower's are rounded to bfloat16."""
HEAD_SIZES = (64, 72, 128, 256)
HEADS = {"multi-head": (3, 3), "grouped": (6, 2), "multi-query": (4, 1)}  # H, Hkv


@dataclass(frozen=True, slots=True)
class OperationCase:
    """One call of an operation."""

    operation: str
    """The method's name."""
    sort: str
    """What sort of call it is: a weight type, "causal, grouped"."""
    run: Callable[[Ops], Array]
    """Return what the operation gives on a backend."""
    exact: bool = False
    """Whether nothing is computed, so that no bit may differ."""
    work: tuple[int, int] = (8, 1 << 12)
    """Rows, and numbers in the largest matrix: what `Ops.running` is told."""

    def bound(self, precision: str, device: str) -> float:
        """Return the largest relative RMS error that is right in precision `exact` or `fast`."""
        if precision == "fast" and self.operation in PRODUCTS:
            return CODES if self.work[0] <= FEW else MANY[device]
        if precision == "fast" and self.operation in HALVES[device]:
            return HALVES[device][self.operation]
        return 0.0 if self.exact else EXACT.get(self.operation, ROUNDING)


def cases(tensor: RandomTensor, kinds: Sequence[str]) -> Iterator[OperationCase]:
    """Yield the cases of all operations, with matrices of all `kinds`."""
    for kind in kinds:
        yield from _matrices(tensor, kind)
    yield from _arrays()
    yield from _linears(tensor)
    yield from _row_by_row()
    yield OperationCase("depthwise", "", _depthwise)
    yield from _rope()
    yield OperationCase("cache", "", _cached, exact=True)
    yield from _attention()
    yield from _steps(tensor)


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    """Return normal numbers, float32; the same for the same shape and seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _matrices(tensor: RandomTensor, kind: str) -> Iterator[OperationCase]:
    block = TYPES[kind].weights
    for T, N, blocks in ((1, 5, 3), (3, 1, 1), (8, 37, 1280 // block), (19, 70, -(-96 // block))):
        product = partial(_product, tensor(kind, N, blocks * block), T)
        yield OperationCase("product", kind, product, work=(T, N * blocks * block))
    view = tensor(kind, 9, 5 * block)
    yield OperationCase("rows", kind, lambda ops: ops.matrix(view).rows([8, 0, 3, 3]), exact=True)
    yield OperationCase("vector", kind, lambda ops: ops.vector(view), exact=True)


def _product(view: TensorView, T: int, ops: Ops) -> Array:
    return ops.linear(ops.array(rand(T, view.shape[1], seed=1)), Linear(ops.matrix(view)))


def _arrays() -> Iterator[OperationCase]:
    yield OperationCase("array", "", lambda ops: ops.array(ops.numpy(ops.array(rand(5, 7)))), exact=True)
    parts = [rand(n, 7) for n in (1, 5, 2)]
    yield OperationCase("concat", "", lambda ops: ops.concat([ops.array(x) for x in parts]), exact=True)
    yield OperationCase("all_finite", "", _finite, exact=True)
    yield OperationCase("replay", "", _replayed)


def _finite(ops: Ops) -> Array:
    """Ask of good rows, of a NaN in the last place and of an infinity there: 1, 0, 0."""
    found = []
    for last in 1.0, np.nan, -np.inf:
        x = rand(3, 37)
        x[2, 36] = last
        found.append(ops.all_finite(ops.array(x)))
    return ops.array(np.array(found, np.float32))


def _replayed(ops: Ops) -> Array:
    """Return the result of the second input, which may come of what was recorded with the first."""

    def silu(x: Array) -> Array:
        return ops.activation(x, "silu")

    return [ops.replay(silu, x) for x in (rand(5, 7), rand(5, 7, seed=1))][1]


def _linears(tensor: RandomTensor) -> Iterator[OperationCase]:
    views = [tensor("F16", n, 96) for n in (5, 33, 64)]
    for T in 1, 11:
        yield OperationCase("linear", f"{T} rows", partial(_with_bias, views[1], T), work=(T, 33 * 96))
        yield OperationCase("linears", f"{T} rows", partial(_beside, views, T), work=(T, 64 * 96))
    for kind in "F32", "F16":
        flat = tensor(kind, 21, 3 * 7 * 7)
        yield OperationCase(
            "patches", kind, partial(_patches, TensorView("k", kind, (21, 3, 7, 7), flat.data)), work=(15, 21 * 147)
        )


def _with_bias(view: TensorView, T: int, ops: Ops) -> Array:
    return ops.linear(ops.array(rand(T, view.shape[1])), Linear(ops.matrix(view), ops.array(rand(view.shape[0]))))


def _beside(views: Sequence[TensorView], T: int, ops: Ops) -> Array:
    """Multiply by several matrices, of which the second has a bias."""
    ws = [Linear(ops.matrix(view), ops.array(rand(33)) if i == 1 else None) for i, view in enumerate(views)]
    ys = ops.linears(ops.array(rand(T, 96)), ws)
    return ops.array(np.concatenate([ops.numpy(y) for y in ys], 1))


def _patches(kernel: TensorView, ops: Ops) -> Array:
    D, _, P, _ = kernel.shape
    return ops.patches(ops.array(rand(3, 3 * P, 5 * P)), Linear(ops.matrix(kernel), ops.array(rand(D))))


def _depthwise(ops: Ops) -> Array:
    places = np.random.default_rng(0).integers(-1, 20, (9, 33))
    return ops.depthwise(ops.array(rand(20, 37)), ops.array(rand(37, 9, seed=1)), places)


def _row_by_row() -> Iterator[OperationCase]:
    for T, D in (1, 37), (5, 1000), (3, 4096):
        for bias in True, False:
            yield OperationCase("layer_norm", f"{T} x {D}", partial(_layer_norm, T, D, bias))
        yield OperationCase("rms_norm", f"{T} x {D}", partial(_rms_norm, (T, D)))
    yield OperationCase("rms_norm", "of heads", partial(_rms_norm, (3, 4, 72)))
    line = np.linspace(-12, 12, 3 * 1001, dtype=np.float32).reshape(3, -1)
    for kind in get_args(Activation):
        yield OperationCase("activation", kind, partial(_activation, line, kind))
        yield OperationCase("gated", kind, partial(_gated, line, kind))
    yield OperationCase("clamp", "", partial(_clamped, line))


def _layer_norm(T: int, D: int, bias: bool, ops: Ops) -> Array:
    w = Norm(ops.array(rand(D, seed=1)), ops.array(rand(D, seed=2)) if bias else None)
    return ops.layer_norm(ops.array(3 * rand(T, D) + 2), w, EPS)


def _rms_norm(shape: tuple[int, ...], ops: Ops) -> Array:
    return ops.rms_norm(ops.array(3 * rand(*shape) + 2), ops.array(rand(shape[-1], seed=1)), EPS)


def _activation(x: np.ndarray, kind: Activation, ops: Ops) -> Array:
    return ops.activation(ops.array(x), kind)


def _clamped(x: np.ndarray, ops: Ops) -> Array:
    return ops.clamp(ops.array(x), -3, 6)


def _gated(x: np.ndarray, kind: Activation, ops: Ops) -> Array:
    return ops.gated(ops.array(x), ops.array(rand(*x.shape)), kind)


def _rope() -> Iterator[OperationCase]:
    for shape in (1, 3, 64), (7, 2, 6), (5, 1, 128):
        for pairs in get_args(Pairs):
            yield OperationCase("rope", pairs, partial(_turned, shape, pairs))


def _turned(shape: tuple[int, int, int], pairs: Pairs, ops: Ops) -> Array:
    angle = 100 * rand(shape[0], shape[2] // 2, seed=1)
    return ops.rope(ops.array(rand(*shape)), ops.array(np.cos(angle)), ops.array(np.sin(angle)), pairs)


def _cached(ops: Ops) -> Array:
    """Grow past the first room, truncate, and grow again; return everything that the last call returns."""
    k, v, cache = rand(700, 2, 64), rand(700, 2, 64, seed=1), ops.cache(2, 2, 64, 700)
    for start, end in (0, 1), (1, 300), (300, 700):
        for layer, sign in (0, -1), (1, 1):
            cache.append(layer, ops.array(sign * k[start:end]), ops.array(sign * v[start:end]))
        cache.advance(end - start)
    cache.truncate(5)
    kv = cache.append(1, ops.array(k[600:]), ops.array(v[600:]))
    return ops.array(np.concatenate([ops.numpy(kv.keys), ops.numpy(kv.values)]))


def _attention() -> Iterator[OperationCase]:
    for dh in HEAD_SIZES:
        for name, heads in HEADS.items():
            yield from _attends(f"causal, {name}", _seen(19, 19), (*heads, dh))
            yield from _attends(f"one query, {name}", _seen(1, 301), (*heads, dh))
        shape = (4, 2, dh)
        yield from _attends("window", _seen(150, 170, window=40), shape)
        yield from _attends("one query, window", _seen(1, 170, window=40), shape)
        yield from _attends("pictures", _seen(70, 75, pictures=True), shape)
        yield from _attends("pictures in a window", _seen(70, 75, window=20, pictures=True), shape)
        yield from _attends("all", Sees.all(77), shape)


def _seen(T: int, S: int, window: int | None = None, pictures: bool = False) -> Sees:
    """Describe the last T of S positions, of which all but the first two and the last are one picture's."""
    key = np.arange(S)
    picture = np.where((key >= 2) & (key < S - 1), 0, -1)
    return Sees(key[S - T :], key, window=window, pictures=(picture[S - T :], picture) if pictures else None)


def _attends(sort: str, sees: Sees, shape: tuple[int, int, int]) -> Iterator[OperationCase]:
    yield OperationCase("attention", sort, partial(_attended, sees, shape))
    yield OperationCase("attention_weights, attention_values", sort, partial(_attended_in_two, sees, shape))


def _qkv(sees: Sees, shape: tuple[int, int, int], ops: Ops) -> tuple[Array, KV]:
    """Return queries, and keys and values as a tower has them, or as a decoder's cache keeps them."""
    (H, Hkv, dh), T, S = shape, len(sees.query), len(sees.key)
    q, k, v = (ops.array(x) for x in (2 * rand(T, H, dh), 2 * rand(S, Hkv, dh, seed=1), rand(S, Hkv, dh, seed=2)))
    return q, ops.cache(1, Hkv, dh, S).append(0, k, v) if sees.causal else KV(k, v)


def _attended(sees: Sees, shape: tuple[int, int, int], ops: Ops) -> Array:
    q, kv = _qkv(sees, shape, ops)
    return ops.attention(q, kv, shape[2] ** -0.5, ops.plan(sees))


def _attended_in_two(sees: Sees, shape: tuple[int, int, int], ops: Ops) -> Array:
    q, kv = _qkv(sees, shape, ops)
    return ops.attention_values(ops.attention_weights(q, kv, shape[2] ** -0.5, ops.plan(sees)), kv)


def _steps(tensor: RandomTensor) -> Iterator[OperationCase]:
    for name, style in STYLES.items():
        yield OperationCase("stepper", name, partial(_stepped, tensor, style), work=(1, 256 * 512))
        yield OperationCase("step_together", name, partial(_stepped_together, tensor, style), work=(1, 256 * 512))


def _stepped(tensor: RandomTensor, style: Style, ops: Ops) -> Array:
    """Run four tokens through a small decoder; by `forward` where the backend has no stepper."""
    plan = decoder(tensor, style, ops)
    cache = ops.cache(len(plan.layers), plan.n_head_kv, plan.head_size, 16)
    stepper = ops.stepper(plan, cache)
    found = [forward(plan, token, ops, cache) if stepper is None else stepper.step(token) for token in (5, 0, 63, 5)]
    return ops.array(np.asarray(found[-1] if stepper is not None else ops.numpy(found[-1])))


def _stepped_together(tensor: RandomTensor, style: Style, ops: Ops) -> Array:
    """Run the second token of a sequence and the first of another; by `forward` where the backend has no stepper."""
    plan = decoder(tensor, style, ops)
    caches = [ops.cache(len(plan.layers), plan.n_head_kv, plan.head_size, 16) for _ in range(2)]
    steppers = [ops.stepper(plan, cache) for cache in caches]
    able = [stepper for stepper in steppers if stepper is not None]
    if len(able) < 2:
        forward(plan, 5, ops, caches[0])
        return ops.concat(
            [forward(plan, token, ops, cache)[None] for token, cache in zip((9, 63), caches, strict=True)]
        )
    able[0].step(5)
    return ops.array(np.stack([np.asarray(x) for x in ops.step_together(able, (9, 63))]))
