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
from llava_ref.ops.protocol import Ops
from llava_ref.profiles import Quirks

from ..support.helpers import close, rand, rel_rms


def make(backend: str = "numpy", kv_cache: str = "f32", flash_attention: str = "off") -> Ops:
    return get_ops(backend, "cpu", 1, 1 << 20, "ggml", Quirks(kv_cache=kv_cache, flash_attention=flash_attention))


def view(kind: str, shape: tuple[int, ...], data: np.ndarray) -> TensorView:
    return TensorView("blk.0.w", kind, shape, memoryview(bytearray(data.tobytes())))


def linear(ops: Ops, kind: str, x: np.ndarray, rows: int = 9) -> np.ndarray:
    w = ops.weight(view(kind, (rows, x.shape[1]), random_tensor(kind, rows, x.shape[1], 1)))
    b = ops.weight(view("F32", (rows,), rand(rows)))
    return ops.numpy(ops.linear(ops.array(x), w, b))


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
    y = ops.linear(x, ops.weight(view(kind, (1, 64), blocks)))
    assert y[0, 0] == pytest.approx(2 * (12.8984375 + 129), rel=1e-7)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_a_convolution_is_float16_on_both_sides(backend, kind):
    kernel, x = rand(10, 3, 4, 4) / 7, rand(3, 8, 12)
    stored = kernel.astype(np.float16) if kind == "F16" else kernel
    ops = make(backend)
    y = ops.numpy(ops.patches(ops.array(x), ops.weight(view(kind, kernel.shape, stored))))
    exact = EXACT["numpy"]
    close(y, exact.patches(half(x), exact.weight(view("F32", kernel.shape, half(kernel)))), 1e-6)
    assert rel_rms(y, exact.patches(x, exact.weight(view("F32", kernel.shape, half(kernel))))) > 1e-5
    assert rel_rms(y, exact.patches(half(x), exact.weight(view("F32", kernel.shape, kernel)))) > 1e-5


@pytest.mark.parametrize("kind, shape", [("BF16", (2, 3, 4, 4)), ("F64", (2, 4)), ("I8", (2, 4))])
def test_what_ggml_cannot_multiply_by_is_refused(kind, shape):
    with pytest.raises(ParameterError, match=f"blk.0.w.*{kind}"):
        make().weight(view(kind, shape, np.zeros(400, np.uint8)))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ParameterError, match="'exact' or 'ggml'"):
        get_ops("numpy", "cpu", 1, 0, "float16")


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_what_is_float32_in_ggml_is_that_of_the_backend(backend):
    ops, inner = make(backend), EXACT[backend]
    x = ops.array(rand(5, 6))
    gain, bias = (view("F32", (6,), rand(6, seed=seed)) for seed in (1, 2))
    for kind in ("gelu_erf", "silu"):
        assert (ops.activation(x, kind) == inner.activation(x, kind)).all()
    for found, want in (
        (ops.rms_norm(x, ops.weight(gain), 1e-5), inner.rms_norm(x, inner.weight(gain), 1e-5)),
        (ops.layer_norm(x, ops.weight(gain), ops.weight(bias), 1e-5),
         inner.layer_norm(x, inner.weight(gain), inner.weight(bias), 1e-5)),
        (ops.concat([ops.weight(bias), x]), inner.concat([inner.weight(bias), x])),
        (ops.add(x, ops.weight(view("F32", (5, 6), rand(5, 6)))),
         inner.add(x, inner.weight(view("F32", (5, 6), rand(5, 6))))),
        (ops.embed(ops.weight(view("F32", (5, 6), rand(5, 6))), [2, 0]), ops.array(rand(5, 6)[[2, 0]])),
        (ops.rope(x.reshape(5, 1, 6), x[:, :3], x[:, 3:]), inner.rope(x.reshape(5, 1, 6), x[:, :3], x[:, 3:])),
        (ops.zeros((5, 6)), inner.zeros((5, 6))),
    ):  # fmt: skip
        assert (found == want).all()
    assert ops.all_finite(x) and not ops.all_finite(x + np.inf)
    assert (ops.name, ops.device) == (backend, "cpu")


def qkv(T: int, S: int, H: int = 6, Hkv: int = 2, dh: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    mask = np.where(np.arange(S)[None] > np.arange(S - T, S)[:, None], -np.inf, 0).astype(np.float32)
    return rand(T, H, dh), rand(S, Hkv, dh, seed=1), rand(S, Hkv, dh, seed=2), mask


def attention(ops: Ops, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    arrays = (ops.array(x) for x in (q, k, v))
    return ops.numpy(ops.attention(*arrays, 0.3, None if mask is None else ops.array(mask)))


@pytest.mark.parametrize("backend, T, masked", list(product(["numpy", "torch"], [1, 7, 63, 64, 65], [True, False])))
def test_attention_follows_the_quirks(backend, T, masked):
    (q, k, v, mask), exact = qkv(T, 70), EXACT["numpy"]
    m = mask if masked else None
    close(attention(make(backend), q, k, v, m), attention(exact, q, k, v, m), 1e-6)
    weights = half(exact.attention_weights(half(q), half(k), 0.3, m))
    close(attention(make(backend, "f16"), q, k, v, m), exact.attention_values(weights, half(v)), 3e-5)  # weights flip
    tiled = attention(exact, q, half(k), half(v), m)
    want = tiled if T >= 64 else one_by_one(half(q), half(k), half(v), 0.3, m)
    for kv_cache in ("f32", "f16"):  # flash attention casts a float32 cache
        close(attention(make(backend, kv_cache, "on"), q, k, v, m), want, 1e-6)
    assert np.abs(want - tiled).max() > 1e-4 or T >= 64


@pytest.mark.parametrize("kv_cache, flash", list(product(["f32", "f16"], ["off", "on"])))
@pytest.mark.parametrize("T", [7, 64])
def test_the_weights_of_attention_can_be_had(kv_cache, flash, T):
    q, k, v, mask = qkv(T, 70)
    ops = make("numpy", kv_cache, flash)
    weights = ops.attention_weights(q, k, 0.3, mask)
    close(weights.sum(-1), np.ones((6, T)), 1e-6)
    close(
        ops.attention_values(weights, v), ops.attention(q, k, v, 0.3, mask), 3e-3 if flash == "on" and T < 64 else 1e-6
    )


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
    q, k, v, mask = qkv(3, 9)
    mask[:, :2] = -np.inf
    close(one_by_one(q, k, v, 0.3, mask), one_by_one(q, k[2:], v[2:], 0.3, mask[:, 2:]), 0)


def test_few_queries_come_near_to_attention():
    q, k, v, mask = (half(x) for x in qkv(11, 40))
    close(one_by_one(q, k, v, 0.3, mask), attention(EXACT["numpy"], q, k, v, mask), 2e-3)
