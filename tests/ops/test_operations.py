"""Operations of both backends: rotary pairs, several matrices at once, rows of a matrix, caches, products shown."""

from itertools import product

import numpy as np
import pytest
import torch

from llava_ref.conformance.pairs.random_blocks import random_tensor
from llava_ref.gguf.file import TensorView
from llava_ref.ops import get_ops
from llava_ref.ops.numpy_quants import dequantize
from llava_ref.ops.probe import probed
from llava_ref.ops.protocol import Linear

from ..support.helpers import close, rand

BACKENDS = ["numpy", "torch"]
KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_K"]


def view(kind: str, rows: int, columns: int, seed: int = 1) -> TensorView:
    data = random_tensor(kind, rows, columns, seed)
    return TensorView(f"{kind}.{rows}", kind, (rows, columns), memoryview(bytearray(data.tobytes())))


def rotate_half(x):
    """transformers 5.24, models/gemma3/modeling_gemma3.py: the second half, negated, before the first."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dh", [2, 6, 10])
def test_rope_of_halves_is_rotate_half(backend, dh):
    ops, x, angle = get_ops(backend, "cpu", 1, 0), rand(7, 3, dh), rand(7, dh // 2, seed=1)
    wide = torch.from_numpy(np.concatenate([angle, angle], 1)).double()[:, None]
    want = torch.from_numpy(x).double() * wide.cos() + rotate_half(torch.from_numpy(x).double()) * wide.sin()
    cos, sin = (ops.array(f(angle)) for f in (np.cos, np.sin))
    close(ops.numpy(ops.rope(ops.array(x), cos, sin, "halves")), want.numpy(), 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_ropes_turn_the_same_pairs(backend):
    """Channels 0 1 2 3 4 5 by halves are pairs 03 14 25; put side by side they are those of `adjacent`."""
    ops, x, angle = get_ops(backend, "cpu", 1, 0), rand(5, 2, 6), rand(5, 3, seed=1)
    order = [0, 3, 1, 4, 2, 5]
    cos, sin = (ops.array(f(angle)) for f in (np.cos, np.sin))
    halves, adjacent = (
        ops.numpy(ops.rope(ops.array(given), cos, sin, pairs))
        for given, pairs in ((x, "halves"), (x[..., order], "adjacent"))
    )
    np.testing.assert_array_equal(halves[..., order], adjacent)
    assert np.abs(ops.numpy(ops.rope(ops.array(x), cos, sin, "adjacent")) - halves).max() > 0.1


@pytest.mark.parametrize("backend, precision, kind", list(product(BACKENDS, ["exact", "ggml"], KINDS)))
def test_several_matrices_are_one_after_the_other(backend, precision, kind):
    ops = get_ops(backend, "cpu", 1, 0, precision)
    ws = [Linear(ops.matrix(view(kind, n, 512, n)), None if n == 7 else ops.array(rand(n))) for n in (5, 7, 16)]
    x = ops.array(rand(3, 512))
    found = ops.linears(x, ws)
    assert [y.shape for y in found] == [(3, 5), (3, 7), (3, 16)]
    for y, w in zip(found, ws, strict=True):
        np.testing.assert_array_equal(ops.numpy(y), ops.numpy(ops.linear(x, w)))


@pytest.mark.parametrize("backend, precision, kind", list(product(BACKENDS, ["exact", "ggml"], KINDS)))
def test_rows_are_the_rows_of_the_weights(backend, precision, kind):
    """Nothing rounds an embedding, in precision ggml either; a matrix says what it is in the file."""
    ops, stored = get_ops(backend, "cpu", 1, 1 << 20, precision), view(kind, 9, 512)
    matrix, weights = ops.matrix(stored), dequantize(stored)
    assert (matrix.name, matrix.shape, matrix.type) == (f"{kind}.9", (9, 512), kind)
    for _ in range(2):  # before the weights are kept and after
        np.testing.assert_array_equal(ops.numpy(matrix.rows([8, 0, 3, 3])), weights[[8, 0, 3, 3]])
        matrix.product(ops.array(rand(2, 512)))


@pytest.mark.parametrize("backend, precision", list(product(BACKENDS, ["exact", "ggml"])))
def test_every_product_is_shown_with_what_goes_in(backend, precision):
    shown = []
    ops = get_ops(backend, "cpu", 1, 0, precision)
    watched = probed(ops, lambda w, x, y: shown.append((w, ops.numpy(x), ops.numpy(y))))
    one, two, three = (Linear(ops.matrix(view("Q8_0", n, 64, n)), ops.array(rand(n))) for n in (5, 7, 16))
    kernel = TensorView("patch", "F16", (4, 3, 2, 2), memoryview(bytearray(rand(48).astype(np.float16).tobytes())))
    patch, picture, x = Linear(ops.matrix(kernel)), ops.array(rand(3, 4, 6)), ops.array(rand(3, 64))
    results = [watched.linear(x, one), *watched.linears(x + 1, [two, three]), watched.patches(picture, patch)]
    want = [ops.linear(x, one), *ops.linears(x + 1, [two, three]), ops.patches(picture, patch)]
    watched.rms_norm(x, ops.array(rand(64)), 1e-5)
    assert [w for w, _, _ in shown] == [one, two, three, patch]
    for (_, given, y), expected, result, plain in zip(shown, (x, x + 1, x + 1, picture), results, want, strict=True):
        np.testing.assert_array_equal(given, ops.numpy(expected))
        np.testing.assert_array_equal(y, ops.numpy(result))
        np.testing.assert_array_equal(y, ops.numpy(plain))


@pytest.mark.parametrize("backend, precision", list(product(BACKENDS, ["exact", "ggml"])))
def test_a_cache_grows_and_forgets(backend, precision, monkeypatch):
    monkeypatch.setattr("llava_ref.ops.kv.FIRST_ROOM", 3)
    ops, k, v = get_ops(backend, "cpu", 1, 0, precision), rand(11, 2, 4), rand(11, 2, 4, seed=1)
    cache = ops.cache(2, 2, 4, limit=11)
    for start, end in ((0, 2), (2, 3), (3, 8), (8, 11)):
        for layer, sign in ((0, 1), (1, -1)):
            kv = cache.append(layer, ops.array(sign * k[start:end]), ops.array(v[start:end]))
            np.testing.assert_array_equal(ops.numpy(kv.keys), sign * k[:end])
            np.testing.assert_array_equal(ops.numpy(kv.values), v[:end])
            assert cache.length == start
        cache.advance(end - start)
    cache.truncate(20)
    assert cache.length == 11, "there is nothing to forget"
    cache.truncate(4)
    kv = cache.append(0, ops.array(k[9:]), ops.array(v[9:]))
    np.testing.assert_array_equal(ops.numpy(kv.keys), np.concatenate([k[:4], k[9:]]))


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_an_array_lies_row_by_row(backend):
    """Kernels read rows by their address, whatever order of axes the host's array has."""
    columns = np.arange(6.0).reshape(2, 3).T
    found = get_ops(backend, "cpu", 1, 0).array(columns)
    assert (np.asarray(found) == columns).all() and np.asarray(found).flags.c_contiguous
