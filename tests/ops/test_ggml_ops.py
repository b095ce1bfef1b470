"""Precision `ggml` over both backends: where it rounds, where it does not, and how its attention goes."""

from itertools import product

import numpy as np
import pytest

from llava_ref.conformance.pairs.random_blocks import KINDS, random_tensor
from llava_ref.errors import ParameterError
from llava_ref.gguf.file import TensorView
from llava_ref.ops import get_ops
from llava_ref.ops.ggml.attention import one_by_one, online
from llava_ref.ops.ggml.rounding import ROUNDING, half, rounded
from llava_ref.ops.protocol import KV, CacheType, Linear, Norm, Ops, Plan
from llava_ref.ops.sees import Sees

from ..support.helpers import close, rand, rel_rms


def make(backend: str = "numpy", kv_cache: CacheType = "f32", flash_attention: bool = False) -> Ops:
    return get_ops(backend, "cpu", 1, 1 << 20, "ggml", kv_cache=kv_cache, flash_attention=flash_attention)


def view(kind: str, shape: tuple[int, ...], data: np.ndarray) -> TensorView:
    return TensorView("blk.0.w", kind, shape, memoryview(bytearray(data.tobytes())))


def linear(ops: Ops, kind: str, x: np.ndarray, rows: int = 9) -> np.ndarray:
    w = ops.matrix(view(kind, (rows, x.shape[1]), random_tensor(kind, rows, x.shape[1], 1)))
    b = ops.vector(view("F32", (rows,), rand(rows)))
    return ops.numpy(ops.linear(ops.array(x), Linear(w, b)))


EXACT = {backend: get_ops(backend, "cpu", 1, 0) for backend in ("numpy", "torch")}


@pytest.mark.parametrize("backend, kind", list(product(["numpy", "torch"], KINDS)))
def test_linear_is_float32_over_rounded_activations(backend, kind):
    x, exact = rand(5, 512), EXACT[backend]
    found, want = linear(make(backend), kind, x), linear(exact, kind, rounded(x, ROUNDING[kind]))
    close(found, want, 3e-3 if ROUNDING[kind] == "Q8_1" else 1e-6)
    error = rel_rms(found, linear(exact, kind, x))
    assert error < 1e-6 if kind == "F32" else 1e-4 < error < 2e-2


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_minima_meet_the_rounded_sums(kind):
    """Weights that are all minimum (codes 0, m = 2): the product is 2 * the sum of the float16 sums of the blocks."""
    blocks = np.zeros((1, 2, {"Q4_1": 20, "Q5_1": 24}[kind]), np.uint8)
    blocks[..., 2:4] = np.array([2], np.float16).view(np.uint8)
    x = np.zeros((1, 64), np.float32)
    x[0, :2], x[0, 32:34] = (12.7, 0.2), (127, 2)
    ops = make()
    y = ops.matrix(view(kind, (1, 64), blocks)).product(x)
    assert y[0, 0] == pytest.approx(2 * (12.8984375 + 129), rel=1e-7)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_a_convolution_is_float16_on_both_sides(backend, kind):
    kernel, x = rand(10, 3, 4, 4) / 7, rand(3, 8, 12)
    stored = kernel.astype(np.float16) if kind == "F16" else kernel
    ops = make(backend)
    y = ops.numpy(ops.patches(ops.array(x), Linear(ops.matrix(view(kind, kernel.shape, stored)))))
    exact = EXACT["numpy"]
    rounded_kernel, plain = (Linear(exact.matrix(view("F32", kernel.shape, w))) for w in (half(kernel), kernel))
    close(y, exact.patches(half(x), rounded_kernel), 1e-6)
    assert rel_rms(y, exact.patches(x, rounded_kernel)) > 1e-5
    assert rel_rms(y, exact.patches(half(x), plain)) > 1e-5


@pytest.mark.parametrize("kind, shape", [("BF16", (2, 3, 4, 4)), ("F64", (2, 4)), ("I8", (2, 4))])
def test_what_ggml_cannot_multiply_by_is_refused(kind, shape):
    with pytest.raises(ParameterError, match=f"blk.0.w.*{kind}"):
        make().matrix(view(kind, shape, np.zeros(400, np.uint8)))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ParameterError, match="expected one of exact, fast, ggml"):
        get_ops("numpy", "cpu", 1, 0, "float16")


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_what_is_float32_in_ggml_is_that_of_the_backend(backend):
    ops, inner = make(backend), EXACT[backend]
    x = ops.array(rand(5, 6))
    table = view("F32", (5, 6), rand(5, 6))
    gain, bias = (ops.vector(view("F32", (6,), rand(6, seed=seed))) for seed in (1, 2))
    turned = x.reshape(5, 1, 6), x[:, :3], x[:, 3:]
    for kind in ("gelu_erf", "silu"):
        assert (ops.activation(x, kind) == inner.activation(x, kind)).all()
    for found, want in (
        (ops.vector(table), inner.vector(table)),
        (ops.rms_norm(x, gain, 1e-5), inner.rms_norm(x, gain, 1e-5)),
        (ops.layer_norm(x, Norm(gain, bias), 1e-5), inner.layer_norm(x, Norm(gain, bias), 1e-5)),
        (ops.concat([bias[None], x]), inner.concat([bias[None], x])),
        (ops.matrix(table).rows([2, 0]), ops.array(rand(5, 6)[[2, 0]])),
        (ops.rope(*turned, "adjacent"), inner.rope(*turned, "adjacent")),
        (ops.rope(*turned, "halves"), inner.rope(*turned, "halves")),
    ):
        assert (found == want).all()
    assert ops.all_finite(x) and not ops.all_finite(x + np.inf)
    assert (ops.name, ops.device) == (backend, "cpu")


def qkv(T: int, S: int, H: int = 6, Hkv: int = 2, dh: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rand(T, H, dh), rand(S, Hkv, dh, seed=1), rand(S, Hkv, dh, seed=2)


def last(T: int, S: int, causal: bool = True) -> Sees:
    """Describe the last T of S positions, which see those before them, or all."""
    return Sees(np.arange(S - T, S), np.arange(S), causal)


def ready(ops: Ops, q: np.ndarray, k: np.ndarray, v: np.ndarray, sees: Sees) -> tuple[np.ndarray, KV, float, Plan]:
    """Return what `ops.attention` takes: keys and values that have been through its cache, scale 0.3."""
    cache = ops.cache(1, *k.shape[1:], len(k))
    return ops.array(q), cache.append(0, ops.array(k), ops.array(v)), 0.3, ops.plan(sees)


def attention(ops: Ops, q: np.ndarray, k: np.ndarray, v: np.ndarray, sees: Sees) -> np.ndarray:
    return ops.numpy(ops.attention(*ready(ops, q, k, v, sees)))


@pytest.mark.parametrize("backend, T, masked", list(product(["numpy", "torch"], [1, 7, 63, 64, 65], [True, False])))
def test_attention_follows_the_quirks(backend, T, masked):
    (q, k, v), exact, sees = qkv(T, 70), EXACT["numpy"], last(T, 70, masked)
    close(attention(make(backend), q, k, v, sees), attention(exact, q, k, v, sees), 1e-6)
    halves = half(q), half(k), half(v)
    weights = half(exact.attention_weights(*ready(exact, *halves, sees)))
    want = exact.attention_values(weights, KV(halves[1], halves[2]))
    close(attention(make(backend, "f16"), q, k, v, sees), want, 3e-5)  # weights flip
    tiled = attention(exact, q, *halves[1:], sees)
    want = tiled if T >= 64 else one_by_one(*halves, 0.3, exact.plan(sees))
    for kv_cache in ("f32", "f16"):  # flash attention casts a float32 cache
        close(attention(make(backend, kv_cache, True), q, k, v, sees), want, 1e-6)
    assert np.abs(want - tiled).max() > 1e-4 or T >= 64


@pytest.mark.parametrize("kv_cache, flash", list(product(["f32", "f16"], [False, True])))
@pytest.mark.parametrize("T", [7, 64])
def test_the_weights_of_attention_can_be_had(kv_cache, flash, T):
    ops = make("numpy", kv_cache, flash)
    given = ready(ops, *qkv(T, 70), last(T, 70))
    weights = ops.attention_weights(*given)
    close(weights.sum(-1), np.ones((6, T)), 1e-6)
    close(ops.attention_values(weights, given[1]), ops.attention(*given), 3e-3 if flash and T < 64 else 1e-6)


@pytest.mark.parametrize("backend, kv_cache", list(product(["numpy", "torch"], ["f32", "f16"])))
def test_a_cache_of_float16_rounds_what_it_stores(backend, kv_cache):
    ops, k, v = make(backend, kv_cache), rand(3, 2, 8), rand(3, 2, 8, seed=1)
    cache = ops.cache(2, 2, 8, 10)
    kv = cache.append(1, ops.array(k), ops.array(v))
    want = (half(k), half(v)) if kv_cache == "f16" else (k, v)
    assert kv.type == kv_cache
    assert all((ops.numpy(x) == y).all() for x, y in zip((kv.keys, kv.values), want, strict=True))
    assert cache.length == 0, "until every layer has its rows"
    cache.advance(3)
    both = cache.append(1, ops.array(k[:1]), ops.array(v[:1]))
    assert cache.length == 3 and (ops.numpy(both.keys) == np.concatenate([want[0], want[0][:1]])).all()
    cache.truncate(1)
    again = cache.append(1, ops.array(k[2:]), ops.array(v[2:]))
    assert cache.length == 1 and (ops.numpy(again.values) == want[1][[0, 2]]).all()


def test_what_is_summed_is_float16_after_every_key():
    """2048 + 1 is 2049, a tie: to even it stays 2048, however many ones follow. With the ones first nothing is lost."""
    q, k = np.zeros((1, 1, 2), np.float32), np.zeros((9, 1, 2), np.float32)
    v = np.ones((9, 1, 2), np.float32)
    v[0] = 2048
    assert one_by_one(q, k, v, 1.0, None).tolist() == [[2048 * np.float32(1 / 9)] * 2]
    assert one_by_one(q, k, v[::-1], 1.0, None).tolist() == [[2056 * np.float32(1 / 9)] * 2]


def test_what_was_summed_is_rounded_when_it_shrinks():
    """Scores 0 and 0.01, values 1 and -1: float16(exp(-0.01)) - 1 = -0.009765625, not -0.00995."""
    q, k, v = (np.array(x, np.float32)[:, None, None] for x in ([1], [0, 1], [1, -1]))
    assert one_by_one(q, k, v, 0.01, None)[0, 0] == pytest.approx(-0.009765625 / (1 + np.exp(-0.01)), rel=1e-6)


def test_a_key_with_a_new_largest_score_shrinks_what_was_summed():
    weight, shrink = online(np.log(np.array([-0.0 + 1, 2, 4, 2, 8], np.float32)))
    np.testing.assert_allclose(weight, [1, 1, 1, 0.5, 1], rtol=1e-6)
    np.testing.assert_allclose(shrink, [0, 0.5, 0.5, 1, 0.5], rtol=1e-6)


def test_hidden_keys_change_nothing():
    weight, shrink = online(np.array([-np.inf, -np.inf, 0, -np.inf, 0], np.float32))
    assert weight.tolist() == [0, 0, 1, 0, 1] and shrink.tolist() == [1, 1, 0, 1, 1]
    q, k, v = qkv(3, 9)
    mask = EXACT["numpy"].plan(last(3, 9))
    mask[:, :2] = -np.inf
    close(one_by_one(q, k, v, 0.3, mask), one_by_one(q, k[2:], v[2:], 0.3, mask[:, 2:]), 0)


def test_few_queries_come_near_to_attention():
    (q, k, v), sees, exact = (half(x) for x in qkv(11, 40)), last(11, 40), EXACT["numpy"]
    close(one_by_one(q, k, v, 0.3, exact.plan(sees)), attention(exact, q, k, v, sees), 2e-3)
