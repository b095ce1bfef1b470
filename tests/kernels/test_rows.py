"""Rows of planes, dequantised by a kernel, are those of the blocks, bit for bit."""

import pytest
import torch

pytest.importorskip("triton")

from llava_ref.gguf.types import TYPES
from llava_ref.kernels.planes import LAYOUTS, pack
from llava_ref.kernels.triton.rows import dense, rows

from ..support.triton_device import DEVICE
from .test_planes import blocks, extreme, reference, same_bits

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")
GUARD = 64
IDS = [6, 0, 3, 3]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def guarded(*shape: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """An output full of NaN between two canaries, and the memory that holds all three."""
    size = shape[0] * shape[1]
    memory = torch.full((size + 2 * GUARD,), torch.nan, dtype=dtype, device=DEVICE)
    memory[:GUARD] = memory[-GUARD:] = 7
    return memory[GUARD:-GUARD].view(shape), memory


def unharmed(memory: torch.Tensor) -> bool:
    return bool((memory[:GUARD] == 7).all() and (memory[-GUARD:] == 7).all())


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("made", [blocks, extreme])
def test_rows_have_the_bits_of_the_blocks(kind, made):
    b = made(kind, 7, 1280)
    w, ids = pack(b.to(DEVICE), kind, (7, 1280)), torch.tensor(IDS, dtype=torch.int32, device=DEVICE)
    out, memory = guarded(4, 1280, dtype=torch.float32)
    assert rows(w, ids, out) is out
    assert same_bits(out.cpu(), reference(b, kind)[IDS]) and unharmed(memory)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_whole_matrix_is_rounded_once(kind, dtype):
    """An odd number of rows, the narrowest that the type's block allows: most of a padded row is left out."""
    K = 96 if TYPES[kind].weights == 32 else 256
    b = extreme(kind, 5, K)
    w = pack(b.to(DEVICE), kind, (5, K))
    out, memory = guarded(5, K, dtype=dtype)
    assert dense(w, dtype, out) is out
    assert unharmed(memory)
    assert same_bits(out.cpu().float(), reference(b, kind).to(dtype).float())


@pytest.mark.parametrize("K", [32, 1056, 2080])
def test_any_width(K):
    b = blocks("Q5_1", 37, K)
    assert same_bits(dense(pack(b.to(DEVICE), "Q5_1", (37, K)), torch.float32).cpu(), reference(b, "Q5_1"))


def test_rows_of_a_part():
    b = blocks("Q6_K", 9, 512)
    part = pack(b.to(DEVICE), "Q6_K", (9, 512)).part(2, 5)
    ids = torch.tensor([2, 0], dtype=torch.int32, device=DEVICE)
    assert same_bits(rows(part, ids).cpu(), reference(b, "Q6_K")[[4, 2]])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_rows_are_scaled_before_they_are_rounded(kind):
    b = blocks(kind, 7, 256)
    w, ids = pack(b.to(DEVICE), kind, (7, 256)), torch.tensor(IDS, dtype=torch.int32, device=DEVICE)
    scale = 2560**0.5
    want = (reference(b, kind)[IDS] * torch.tensor(scale, dtype=torch.float32)).to(torch.bfloat16)
    assert same_bits(rows(w, ids, dtype=torch.bfloat16, scale=scale).cpu().float(), want.float())


def test_bfloat16_ties_go_to_even():
    """Q8_0 of scale 1 and 257 / 256 has values half way between two bfloat16 numbers, of both kinds."""
    b = torch.arange(-64, 64, dtype=torch.int8).view(torch.uint8).reshape(1, 4, 32)
    d = torch.tensor([257 / 256, 129 / 128, 3.0, 1.0], dtype=torch.float16).view(torch.uint8).reshape(1, 4, 2)
    b = torch.cat((d, b), -1).reshape(1, -1)
    want = reference(b, "Q8_0")
    bits = want.view(torch.int32)
    half = bits & 0xFFFF == 0x8000
    assert (bits[half] >> 16 & 1 == 0).any() and (bits[half] >> 16 & 1 == 1).any()
    got = dense(pack(b.to(DEVICE), "Q8_0", (1, 128)), torch.bfloat16).cpu()
    assert torch.equal(got, want.to(torch.bfloat16))


def test_no_rows():
    w = pack(blocks("Q4_0", 3, 32).to(DEVICE), "Q4_0", (3, 32))
    assert rows(w, torch.empty(0, dtype=torch.int32, device=DEVICE)).shape == (0, 32)


def test_what_does_not_fit_is_refused():
    w = pack(blocks("Q4_0", 3, 32).to(DEVICE), "Q4_0", (3, 32))
    ids = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match=r"ids: expected \(n,\) int32 without gaps, not \(2,\) torch.int64"):
        rows(w, ids.long())
    with pytest.raises(ValueError, match="ids: expected"):
        rows(w, torch.zeros(4, dtype=torch.int32, device=DEVICE)[::2])
    with pytest.raises(ValueError, match="dtype: torch.float64 is not one of"):
        dense(w, torch.float64)
    with pytest.raises(ValueError, match=r"out: expected \(2, 32\) torch.float32 without gaps, not \(2, 64\)"):
        rows(w, ids, torch.empty(2, 64, device=DEVICE))
