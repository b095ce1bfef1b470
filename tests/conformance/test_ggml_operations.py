"""Precision `ggml` against ggml itself, one operation at a time, fed the same numbers."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from llava_ref.conformance.engines.ggml import operations as ggml
from llava_ref.conformance.engines.ggml import table as ggml_table
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs.random_blocks import random_tensor
from llava_ref.gguf.file import TensorView
from llava_ref.ops import get_ops
from llava_ref.ops.ggml.gelu import gelu_quick, gelu_tanh
from llava_ref.ops.ggml.rounding import ROUNDING, bfloat16, blocks_of_32, blocks_of_256, half
from llava_ref.ops.protocol import KV, Linear, Ops
from llava_ref.ops.sees import Sees
from llava_ref.tracing.distance import rel_rms

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]


def make(kv_cache: Any = "f32", flash_attention: Any = "off") -> Ops:
    return get_ops("numpy", "cpu", 1, 0, "ggml", kv_cache=kv_cache, flash_attention=flash_attention == "on")


def test_every_kernel_wants_what_we_round_to() -> None:
    assert ggml.kernels() == dict(ROUNDING)


@pytest.mark.parametrize("kind", ROUNDING)
def test_products(within: Any, kind: str) -> None:
    (row,) = ggml_table.measure([kind])
    within("ggml, a product with its rounding", row.ggml, ggml_table.BOUND)
    within(f"ggml, a product in float32, {row.rounding}", row.exact, ggml_table.EXACT_BOUND[row.rounding])


def test_the_page_has_every_kernel() -> None:
    lines = ggml_table.between_markers(ggml_table.PAGE.read_text()).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {kind: rounding for kind, rounding, _, _ in rows} == ggml.kernels()
    assert all(float(near) < ggml_table.BOUND for _, _, near, _ in rows)
    assert all(float(far) < ggml_table.EXACT_BOUND[rounding] for _, rounding, _, far in rows)


def activations() -> np.ndarray:
    """Make (124, 1024): calm rows, outliers, halves with many ties, zeros, and rows too small for a scale."""
    rng = np.random.default_rng(0)
    halves = rng.integers(-254, 255, (40, 1024)) / 2
    halves[:, ::32] = 127
    parts = [rng.standard_normal((40, 1024)), rng.standard_t(2, (40, 1024)), halves, np.zeros((1, 1024))]
    return np.concatenate([*parts, 1e-8 * rng.standard_normal((3, 1024))]).astype(np.float32)


def test_rounded_activations_are_the_same_bytes() -> None:
    x = activations()
    f16, bf16, q8_0, q8_1, q8_k = ggml.arrays(
        [ggml.rounded(kind, x) for kind in ("F16", "BF16", "Q8_0", "Q8_1", "Q8_K")]
    )
    np.testing.assert_array_equal(f16.view(np.float16), half(x))
    np.testing.assert_array_equal(bf16.view(np.uint16), bfloat16(x).view(np.uint32) >> 16)
    codes, d = blocks_of_32(x)
    scale = d.astype(np.float16)[..., None].view(np.uint8)
    total = (d * codes.sum(-1)).astype(np.float16)[..., None].view(np.uint8)
    bytes_ = codes.astype(np.int8).view(np.uint8)
    np.testing.assert_array_equal(q8_0, np.concatenate([scale, bytes_], -1).reshape(len(x), -1))
    np.testing.assert_array_equal(q8_1, np.concatenate([scale, total, bytes_], -1).reshape(len(x), -1))
    codes, d = blocks_of_256(x)
    found = q8_k.reshape(len(x), -1, 292)  # d, codes, sums of 16
    np.testing.assert_array_equal(found[..., :4].copy().view(np.float32)[..., 0], d)
    np.testing.assert_array_equal(found[..., 4:260].view(np.int8), codes)


def test_gelu_of_every_float16(within: Any) -> None:
    """The C library's tanh and ours may round one entry apart."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    x = np.sort(np.concatenate([every[np.isfinite(every)], np.linspace(-12, 12, 9999, dtype=np.float32)]))
    tanh, quick = ggml.arrays([ggml.activation("gelu", x), ggml.activation("gelu_quick", x)])
    np.testing.assert_array_equal(gelu_quick(x), quick)
    assert (gelu_tanh(x) != tanh).mean() < 1e-4
    np.testing.assert_allclose(gelu_tanh(x), tanh, rtol=1e-3)


@pytest.mark.parametrize("kind, ours", [("gelu_erf", "gelu_erf"), ("silu", "silu")])
def test_the_other_activations_are_float32(within: Any, kind: str, ours: Any) -> None:
    x = np.random.default_rng(0).standard_normal((7, 333)).astype(np.float32) * 4
    (want,) = ggml.arrays([ggml.activation(kind, x)])
    within(f"ggml, {kind}", rel_rms(make().activation(x, ours), want), 2e-7)


def causal(T: int, S: int) -> np.ndarray:
    return np.where(np.arange(S)[None] > np.arange(S - T, S)[:, None], -np.inf, 0).astype(np.float32)


def sees(T: int, S: int, masked: bool = True) -> Sees:
    return Sees(np.arange(S - T, S), np.arange(S), causal=masked)


def test_soft_max(within: Any) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((7, 6, 16)).astype(np.float32), rng.standard_normal((90, 2, 16)).astype(np.float32)
    scores = np.einsum("tgrd,sgd->grts", q.reshape(7, 2, 3, 16), k).reshape(6, 7, 90)
    (want,), ops = ggml.arrays([ggml.soft_max(scores, causal(7, 90), 0.25)]), make()
    within("ggml, soft_max", rel_rms(ops.attention_weights(q, KV(k, k), 0.25, ops.plan(sees(7, 90))), want), 1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_convolution(within: Any, dtype: type) -> None:
    rng = np.random.default_rng(0)
    kernel = (rng.standard_normal((40, 3, 14, 14)) / 25).astype(dtype)
    x = rng.standard_normal((3, 56, 70)).astype(np.float32)
    kind = "F16" if dtype == np.float16 else "F32"
    weight = make().matrix(TensorView("w", kind, kernel.shape, memoryview(bytearray(kernel.tobytes()))))
    (want,) = ggml.arrays([ggml.conv_2d(kernel, x)])
    within("ggml, convolution", rel_rms(make().patches(x, Linear(weight)), want.reshape(40, -1).T), 1e-6)


def cached(ops: Ops, k: np.ndarray, v: np.ndarray) -> KV:
    """Keep k and v (S, Hkv, dh) as the cache of `ops` does."""
    return ops.cache(1, k.shape[1], k.shape[2], k.shape[0]).append(0, k, v)


@pytest.mark.parametrize("T", [1, 7, 63, 64, 100])
def test_flash_attention(within: Any, T: int) -> None:
    """Below 64 queries it sums in float16. If a head has fewer than 32 numbers ggml's scores are exact, and the rest
    follows bit by bit; wider ones are sums in another order, and now and then a rounding goes the other way."""
    jobs, found = [], []
    for (S, H, Hkv), dh, masked in product([(130, 6, 2), (601, 4, 4)], [8, 16, 64, 80], [True, False]):
        rng = np.random.default_rng([S, dh])
        q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((T, H, dh), (S, Hkv, dh), (S, Hkv, dh)))
        mask = causal(T, S) if masked else None
        jobs.append(ggml.flash_attention(q, k.astype(np.float16), v.astype(np.float16), dh**-0.5, mask))
        ops = make("f16", "on")
        found.append((dh, ops.attention(q, cached(ops, k, v), dh**-0.5, ops.plan(sees(T, S, masked)))))
    for (dh, y), want in zip(found, ggml.arrays(jobs), strict=True):
        how, bound = ("in tiles", 1e-6) if T >= 64 else ("narrow heads", 1e-6) if dh < 32 else ("wide heads", 2e-4)
        within(f"ggml, flash attention, {how}", rel_rms(y, want.reshape(T, -1)), bound)


@pytest.mark.parametrize("T", [1, 7, 70])
def test_attention_over_a_half_cache(within: Any, T: int) -> None:
    """Attention without flash attention is two products whose first operand is float16."""
    rng = np.random.default_rng(T)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((T, 1, 64), (90, 1, 64), (90, 1, 64)))
    k16, v16 = (x[:, 0].astype(np.float16) for x in (k, v))
    (scores,) = ggml.arrays([ggml.mul_mat("F16", k16.view(np.uint8), q[:, 0])])
    (weights,) = ggml.arrays([ggml.soft_max(scores[None], causal(T, 90), 0.125)])
    padded = np.pad(v16.T, ((0, 0), (0, 6)))  # 96 keys: rows as long as ggml's cache pads them to
    (want,) = ggml.arrays([ggml.mul_mat("F16", padded.copy().view(np.uint8), np.pad(weights[0], ((0, 0), (0, 6))))])
    ops = make("f16")
    within(
        "ggml, attention over a float16 cache",
        rel_rms(ops.attention(q, cached(ops, k, v), 0.125, ops.plan(sees(T, 90))), want),
        5e-5,
    )


def test_a_crash_is_told_and_the_rest_still_runs() -> None:
    x = np.ones((2, 64), np.float32)
    good = ggml.mul_mat("Q8_0", random_tensor("Q8_0", 3, 64, 0), x)
    unknown = ggml.mul_mat("F64", np.zeros((3, 512), np.uint8), x)
    three_queries = ggml.flash_attention(
        x.reshape(2, 1, 64), np.ones((5, 1, 32), np.float16), np.ones((5, 1, 64), np.float16), 1.0, None
    )
    first, no_kernel, crash, last = ggml.run([good, unknown, three_queries, good])
    assert isinstance(first, np.ndarray) and isinstance(last, np.ndarray)
    assert (first == last).all()
    assert isinstance(no_kernel, ggml.Failure) and "no dot product for F64" in no_kernel.reason
    assert isinstance(crash, ggml.Failure) and "SIGABRT" in crash.reason
    with pytest.raises(oracle.OracleError, match="flash_attention"):
        ggml.arrays([good, three_queries])
