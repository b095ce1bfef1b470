"""ggml's roundings: blocks worked out by hand, the `gguf` package's own Q8_0, torch's bfloat16."""

import gguf
import numpy as np
import pytest
import torch

from llava_ref.conformance.pairs.random_blocks import KINDS
from llava_ref.ops.ggml.gelu import gelu_quick, gelu_tanh
from llava_ref.ops.ggml.rounding import (
    ROUNDING,
    bfloat16,
    blocks_of_32,
    blocks_of_256,
    half,
    minima,
    rounded,
    sum_errors,
)

from ..support.helpers import rand


def row(*numbers: float, width: int) -> np.ndarray:
    """(1, width) float32, zeros behind `numbers`"""
    return np.array([[*numbers, *[0.0] * (width - len(numbers))]], np.float32)


def test_every_type_of_weights_has_its_rounding():
    assert set(ROUNDING) == set(KINDS)


def test_ties_of_q8_0_go_to_the_even_code():
    """d = 1: halves away from zero, as in ggml's portable code, would be 1, 2, 3, -1, -2, -3."""
    codes, d = blocks_of_32(row(0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127, width=32))
    assert d.tolist() == [[1]]
    assert codes[0, 0, :7].tolist() == [0, 2, 2, 0, -2, -2, 127]


def test_q8_0_divides_by_the_scale_before_it_is_stored():
    """Largest 12.7: d is 0.1 for the codes and float16(0.1) = 0.0999755859375 in the product."""
    x = row(12.7, -12.7, 0.1, 6.34, width=32)
    codes, d = blocks_of_32(x)
    assert d[0, 0] == np.float32(0.1)
    assert codes[0, 0, :4].tolist() == [127, -127, 1, 63]
    assert rounded(x, "Q8_0")[0, :2].tolist() == [127 * 0.0999755859375, -127 * 0.0999755859375]
    assert (rounded(x, "Q8_1") == rounded(x, "Q8_0")).all()


def test_blocks_of_q8_0_do_not_see_each_other():
    x = np.concatenate([row(1e4, width=32), row(1e-3, width=32), row(width=32)], 1)
    y = rounded(x, "Q8_0")
    assert y[0, [0, 32]] == pytest.approx([1e4, 1e-3], rel=1e-3)
    assert not y[:, 64:].any()


def test_q8_0_is_nearly_that_of_the_package():
    """Which divides by d instead of multiplying by 127 / max, and rounds ties away from zero: rarely another code."""
    x = rand(200, 256, seed=3)
    blocks = gguf.quantize(x, gguf.GGMLQuantizationType.Q8_0).reshape(200, 8, 34)
    codes, d = blocks_of_32(x)
    np.testing.assert_array_equal(blocks[..., :2].copy().view(np.float16)[..., 0], d.astype(np.float16))
    differences = np.abs(blocks[..., 2:].view(np.int8) - codes)
    assert differences.max() <= 1 and differences.mean() < 1e-4


def test_ties_of_q8_k_go_to_the_even_code_and_the_first_largest_becomes_minus_127():
    codes, d = blocks_of_256(row(0.5, 1.5, -2.5, 127, -127, width=256))
    assert d.tolist() == [[-1]]
    assert codes[0, 0, :5].tolist() == [0, -2, 2, -127, 127]
    codes, d = blocks_of_256(row(0.5, 1.5, -2.5, -127, 127, width=256))
    assert d.tolist() == [[1]]
    assert codes[0, 0, :5].tolist() == [0, 2, -2, -127, 127]


def test_q8_k_keeps_its_scale_in_float32():
    x = row(12.7, 0.1, width=256)
    assert rounded(x, "Q8_K")[0, :2] == pytest.approx([12.7, 0.1], rel=1e-6)


@pytest.mark.parametrize("rounding", ["Q8_0", "Q8_1", "Q8_K"])
@pytest.mark.parametrize("largest", [0.0, 1e-42, 1e-38])
def test_a_block_with_nothing_in_it_is_zeros(rounding, largest):
    x = row(largest, width=256)
    assert not rounded(x, rounding).any()
    assert np.isfinite(sum_errors(x)).all()


def test_sums_of_q8_1_are_float16():
    """Codes 127 and 2, d = 0.1: float16(0.1 * 129) = 12.8984375, but float16(0.1) * 129 = 12.8968505859375. All codes
    127: float16(0.1 * 4064) = 406.5, which float16(0.1), not d, would make 406.25; the product has 406.30078125."""
    errors = sum_errors(
        np.concatenate([row(12.7, 0.2, width=32), row(127, 2, width=32), row(*[12.7] * 32, width=32)], 1)
    )
    assert errors.tolist() == [[12.8984375 - 12.8968505859375, 0, 406.5 - 406.30078125]]


@pytest.mark.parametrize("kind, size", [("Q4_1", 20), ("Q5_1", 24)])
def test_minima_are_the_second_float16(kind, size):
    blocks = np.zeros((6, size), np.uint8)
    blocks[:, 2:4] = np.array([[-1], [0.5], [3], [4], [5], [6]], np.float16).view(np.uint8)
    assert minima(memoryview(blocks.tobytes()), kind, 2).tolist() == [[-1, 0.5, 3], [4, 5, 6]]


def test_float16():
    x = np.array([2049, 2051, 65519, 65520, -1e9, 2**-25, 2**-24 * 1.5, 0.1], np.float32)
    assert half(x).tolist() == [2048, 2052, 65504, np.inf, -np.inf, 0, 2**-23, 0.0999755859375]


def test_bfloat16():
    assert bfloat16(np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)).tolist() == [1, 1 + 2**-6]
    x = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    np.testing.assert_array_equal(bfloat16(x), torch.from_numpy(x).to(torch.bfloat16).float().numpy())


def test_activations_of_float32_weights_are_left_alone():
    x = rand(3, 7)
    assert rounded(x, "F32") is x


def test_gelu_is_a_table_over_float16():
    x = np.array([[1.0, 1.0001, -9.999, -10.0, -1e9, 9.99, 10.0, 12.345678, 1e9]], np.float32)
    y = gelu_tanh(x)
    assert y[0, :2].tolist() == [0.84130859375, 0.84130859375]  # float16(0.841192)
    assert y[0, 2:5].tolist() == [0, 0, 0]
    assert y[0, 5:].tolist() == [half(x)[0, 5], 10.0, x[0, 7], 1e9]


def test_quick_gelu_has_no_bounds_to_its_table():
    x = np.array([1.0, 1.0001, -1, 20.001, -12.0, 1e9], np.float32)  # -12 / (1 + exp(20.4)) = -1.64e-8, below float16's
    assert gelu_quick(x).tolist() == [0.845703125, 0.845703125, -0.1541748046875, 20.0, 0.0, np.inf]  # -0.154206
