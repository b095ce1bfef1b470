"""Tensors are handed out once, in the shape asked for; a matrix stored the other way round is turned."""

import gguf as package
import numpy as np
import pytest

from llava_ref import gguf
from llava_ref.conformance.pairs.writing import held, write
from llava_ref.errors import GGUFError
from llava_ref.models.weights import Weights
from llava_ref.ops import get_ops

from ..support.helpers import close, rand

STORED = rand(32, 64)  # (K, N)


@pytest.fixture
def make(tmp_path):
    """Weights of a file that holds one matrix of this type."""

    def make(kind, backend="numpy", precision="exact", array=STORED):
        tensors = {"m.weight": held(array).as_kind(kind), "m.bias": held(rand(array.shape[0]))}
        write(tmp_path / "file.gguf", {"general.architecture": "none"}, tensors)
        return Weights(gguf.read(tmp_path / "file.gguf"), get_ops(backend, "cpu", 1, 1 << 20, precision))

    return make


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_transposed_matrix_multiplies_the_other_way(make, backend, kind):
    ops, matrix = get_ops(backend, "cpu", 1, 0), make(kind, backend).transposed("m.weight", STORED.shape)
    quantised = package.quants.quantize(STORED, package.GGMLQuantizationType[kind])
    weights = package.quants.dequantize(quantised, package.GGMLQuantizationType[kind])
    assert (matrix.name, matrix.shape, matrix.type) == ("m.weight", (64, 32), kind)
    x = rand(5, 32, seed=1)
    close(ops.numpy(matrix.product(ops.array(x))), x @ weights, 1e-6)
    np.testing.assert_array_equal(ops.numpy(matrix.rows([63, 0])), weights.T[[63, 0]])


def test_blocks_cannot_be_transposed(make):
    with pytest.raises(GGUFError, match="m.weight: is of type Q8_0, and only plain types can be transposed"):
        make("Q8_0").transposed("m.weight", STORED.shape)


def test_a_transposed_matrix_is_asked_for_in_the_shape_of_the_file(make):
    with pytest.raises(GGUFError, match=r"m.weight: has shape \[32, 64\], expected \[64, 32\]"):
        make("F16").transposed("m.weight", (64, 32))


def test_a_transposed_matrix_rounds_its_input_in_precision_ggml(make):
    """Float16 weights: ggml rounds the input to float16, whichever way the file stores them."""
    x, weights = rand(5, 32, seed=1), STORED.astype(np.float16).astype(np.float32)
    found = make("F16", precision="ggml").transposed("m.weight", STORED.shape).product(x)
    close(found, x.astype(np.float16).astype(np.float32) @ weights, 1e-6)
    assert np.abs(found - x @ weights).max() > 1e-4


def test_what_nobody_takes_is_refused(make):
    weights = make("F32")
    weights.matrix("m.weight", (32, 64))
    with pytest.raises(GGUFError, match="m.bias: this model has no use for the tensor"):
        weights.finish()
    weights.finish(unused=["m."])
    weights.vector("m.bias", (32,))
    weights.finish()


def test_a_linear_map_takes_its_bias(make):
    weights = make("F32")
    assert weights.has("m.bias")
    found = weights.linear("m", (32, 64))
    np.testing.assert_array_equal(found.bias, rand(32))
    assert found.weight.shape == (32, 64) and not weights.has("m.bias")
    weights.finish()


def test_a_missing_tensor_is_named(make):
    with pytest.raises(GGUFError, match="n.weight: missing tensor"):
        make("F32").matrix("n.weight", (32, 64))
