"""Random weights: every type, of the size a model needs, the same for the same seed."""

import numpy as np
import pytest

from llava_ref.conformance.pairs.random_blocks import KINDS, random_tensor
from llava_ref.errors import ParameterError
from llava_ref.gguf.file import TensorView
from llava_ref.gguf.types import TYPES
from llava_ref.ops.numpy_quants import dequantize

NOT_WEIGHTS = {"F64", "I8", "I16", "I32", "I64"}


def weights(kind: str, rows: int, columns: int, *arguments, **options) -> np.ndarray:
    data = random_tensor(kind, rows, columns, *arguments, **options)
    assert data.dtype == np.uint8 and data.shape == (rows, columns // TYPES[kind].weights * TYPES[kind].bytes)
    return dequantize(TensorView("t", kind, (rows, columns), memoryview(data.reshape(-1))))


def test_every_type_that_holds_weights_is_made():
    assert set(KINDS) == set(TYPES) - NOT_WEIGHTS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns, gain", [(256, 1.0), (1024, 1.0), (4096, 0.35), (256, 16.0)])
def test_weights_have_the_size_asked_for(kind, columns, gain):
    w = weights(kind, 90, columns, 5, gain=gain) * (columns**0.5 / gain)
    assert np.isfinite(w).all()
    assert abs(w.mean()) < 0.1
    assert abs(w.std() - 1) < (0.5 if kind == "MXFP4" else 0.13)
    assert np.abs(w).max() < 6
    norms = np.linalg.norm(w, axis=1) / columns**0.5
    assert norms.min() > 0.3 and norms.max() < 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_a_tensor(kind):
    first, again, other = (random_tensor(kind, 3, 512, seed) for seed in ([7, 1], [7, 1], [7, 2]))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.3


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"F32", "F16", "BF16"}))
def test_every_byte_of_a_block_varies(kind):
    blocks = random_tensor(kind, 400, TYPES[kind].weights, 0)
    assert (np.array([len(np.unique(column)) for column in blocks.T]) > 1).all()


@pytest.mark.parametrize(
    "kind, columns, words", [("Q9", 256, "Q9"), ("I8", 256, "I8"), ("Q4_K", 320, "rows of 320"), ("Q8_0", 33, "32")]
)
def test_what_cannot_be_made_is_refused(kind, columns, words):
    with pytest.raises(ParameterError, match=words):
        random_tensor(kind, 2, columns, 0)
