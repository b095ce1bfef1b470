"""Every block type: numpy and torch give the same bits, and hand-made blocks give the numbers in the comments."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize as package

from llava_ref.gguf.file import TensorView
from llava_ref.gguf.types import TYPES
from llava_ref.ops import numpy_quants as quants
from llava_ref.ops import torch_quants

QUANTISED = [name for name in TYPES if name not in quants.PLAIN and name != "BF16"]


def view(kind: str, data: np.ndarray, shape: tuple[int, ...]) -> TensorView:
    return TensorView("t", kind, shape, memoryview(np.ascontiguousarray(data).view(np.uint8).reshape(-1)))


def random_blocks(kind: str, n: int) -> np.ndarray:
    """Any bytes at all, (n, bytes) uint8: scales of every size, denormal, infinite and NaN among them."""
    return np.random.default_rng([n, *kind.encode()]).integers(0, 256, (n, TYPES[kind].bytes), np.uint8)


def extreme_blocks(kind: str, n: int) -> np.ndarray:
    """Bytes that make zeros, denormals, the largest numbers and infinities of scales, (n, bytes) uint8"""
    edges = np.array([0x00, 0x01, 0x03, 0x04, 0x7B, 0x7C, 0x7E, 0x7F, 0x80, 0x83, 0xFB, 0xFC, 0xFF], np.uint8)
    return np.random.default_rng([n, *kind.encode()]).choice(edges, (n, TYPES[kind].bytes))


def test_every_type_the_package_knows_is_here():
    known = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items() if kind.name in TYPES}
    assert known == {name: (block.weights, block.bytes) for name, block in TYPES.items()}
    assert {kind.name for kind in gguf.quants._type_traits} <= set(torch_quants.BLOCKS) | {"BF16"}


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("n", [1, 3, 700])
@pytest.mark.parametrize("make", [random_blocks, extreme_blocks])
def test_torch_gives_the_bits_of_the_package(kind, n, make):
    blocks = make(kind, n)
    with np.errstate(all="ignore"):
        want = package(blocks, gguf.GGMLQuantizationType[kind]).reshape(-1).astype(np.float32)
    shape = (n, TYPES[kind].weights)
    got = torch_quants.dequantize(view(kind, blocks, shape), "cpu").numpy().reshape(-1)
    same = got.view(np.uint32) == want.view(np.uint32)
    assert (same | np.isnan(got) & np.isnan(want)).all()
    assert n < 700 or np.isfinite(want).mean() > 0.3
    ours = quants.dequantize(view(kind, blocks, shape)).reshape(-1)
    np.testing.assert_array_equal(ours, want)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"])
def test_plain_types(kind):
    blocks = np.random.default_rng(0).integers(0, 100, (15, TYPES[kind].bytes), np.uint8)
    tensor = view(kind, blocks, (3, 5))
    numpy, torch = quants.dequantize(tensor), torch_quants.dequantize(tensor, "cpu").numpy()
    assert numpy.dtype == torch.dtype == np.float32
    np.testing.assert_array_equal(numpy, torch)
    assert len(np.unique(numpy)) > 3


@pytest.mark.parametrize("kind", list(TYPES))
def test_rows_are_rows_of_the_whole(kind):
    width = 2 * TYPES[kind].weights
    blocks = np.random.default_rng(1).integers(0, 100, (7 * 2, TYPES[kind].bytes), np.uint8)
    tensor, rows = view(kind, blocks, (7, width)), [6, 0, 0, 3]
    whole, some = quants.dequantize(tensor), quants.dequantize_rows(tensor, rows)
    np.testing.assert_array_equal(some, whole[rows])
    blocks = torch_quants.raw(tensor, "cpu").reshape(7, -1)
    np.testing.assert_array_equal(torch_quants.decode(blocks[rows], kind).numpy(), whole[rows])


@pytest.mark.parametrize("kind", ["Q5_1", "Q6_K", "IQ2_S", "NVFP4"])
def test_chunks_join_up(kind, monkeypatch):
    """Sizes that no chunk divides."""
    tensor = view(kind, random_blocks(kind, 77), (7, 11 * TYPES[kind].weights))
    want = quants.dequantize(tensor)
    monkeypatch.setattr(quants, "CHUNK", 3 * TYPES[kind].weights)
    monkeypatch.setitem(torch_quants.CHUNK, "cpu", 5 * TYPES[kind].weights)
    np.testing.assert_array_equal(quants.dequantize(tensor), want)
    np.testing.assert_array_equal(torch_quants.dequantize(tensor, "cpu").numpy(), want)


def test_bfloat16_is_as_the_package_has_it():
    blocks = np.arange(1 << 16, dtype=np.uint16)
    want = package(blocks.view(np.uint8).reshape(256, -1), gguf.GGMLQuantizationType.BF16)
    got = quants.dequantize(view("BF16", blocks, (256, 256)))
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_f32_is_not_copied():
    numbers = np.arange(6, dtype=np.float32)
    tensor = view("F32", numbers, (2, 3))
    for array in (quants.dequantize(tensor), torch_quants.dequantize(tensor, "cpu").numpy()):
        assert np.shares_memory(array, numbers)


HALF_ONE, HALF_TWO = [0x00, 0x3C], [0x00, 0x40]


@pytest.mark.parametrize(
    "kind, block, at, want",
    [
        ("Q4_0", [*HALF_TWO, 0x8F, *[0x88] * 15], {0: 14, 1: 0, 16: 0}, "d=2: (15 - 8) * 2, (8 - 8) * 2"),
        ("Q4_1", [*HALF_TWO, *HALF_ONE, 0x3F, *[0] * 15], {0: 31, 16: 7, 1: 1}, "15 * 2 + 1, 3 * 2 + 1, 0 * 2 + 1"),
        ("Q5_0", [*HALF_ONE, 1, 0, 1, 0, *[0] * 16], {0: 0, 16: 0, 1: -16}, "16 - 16 where the fifth bit is set"),
        ("Q8_0", [*HALF_TWO, 0x80, 0x7F, *[0] * 30], {0: -256, 1: 254, 2: 0}, "-128 * 2, 127 * 2"),
        ("Q6_K", [0x2F, *[0] * 127, 3, *[0] * 63, *[1] * 16, *HALF_ONE], {0: 31, 64: -30, 1: -32}, "63-32, 2-32, -32"),
        ("Q4_K", [*HALF_ONE, *HALF_ONE, *[2] * 4, *[1] * 4, *[0] * 4, 0x5F, *[0] * 127], {0: 29, 32: 9, 1: -1},
         "s=2, t=1: 15 * 2 - 1, 5 * 2 - 1, -1"),
    ],
)  # fmt: skip
def test_blocks_made_by_hand(kind, block, at, want):
    tensor = view(kind, np.array([block], np.uint8), (1, TYPES[kind].weights))
    for array in (quants.dequantize(tensor), torch_quants.dequantize(tensor, "cpu").numpy()):
        assert {i: array[0, i] for i in at} == at, want


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_second_use_uploads_nothing(kind, monkeypatch):
    """So that a graph of a device can be recorded."""
    blocks = torch.from_numpy(random_blocks(kind, 3))
    first = torch_quants.decode(blocks, kind)
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(torch_quants.decode(blocks, kind).nan_to_num(), first.nan_to_num())
