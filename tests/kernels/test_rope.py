"""Rotary positions in Triton against their definition, on rows that lie apart in a wider product."""

import pytest
import torch

from ..support.helpers import close, rand
from ..support.triton_device import DEVICE

pytest.importorskip("triton")

from llava_ref.kernels import reference
from llava_ref.kernels.triton.rope import rope

CASES = [(1, 1, 2), (3, 5, 6), (7, 17, 32), (2, 33, 80), (5, 3, 128)]


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
@pytest.mark.parametrize("T, H, dh", CASES)
def test_pairs_are_turned_as_defined(T, H, dh, pairs):
    wide = torch.tensor(rand(T, 2 * H * dh + 8), device=DEVICE)
    x = wide[:, 8 : 8 + H * dh].reshape(T, H, dh)
    angle = torch.tensor(rand(T, dh // 2, seed=1), device=DEVICE)
    cos, sin = angle.cos() * 1.2, angle.sin() * 1.2
    want = reference.rope(x.double(), cos.double(), sin.double(), pairs)
    got = rope(x, cos, sin, pairs)
    assert got.shape == (T, H, dh)
    close(got.cpu().numpy(), want.cpu().numpy(), 2e-7)


def test_what_it_cannot_turn_is_refused():
    x, table = torch.zeros(2, 4, 6, device=DEVICE), torch.zeros(2, 3, device=DEVICE)
    with pytest.raises(ValueError, match="x: "):
        rope(x.transpose(0, 1), table, table, "halves")
    with pytest.raises(ValueError, match="x: "):
        rope(x.double(), table, table, "halves")
    with pytest.raises(ValueError, match="sin: "):
        rope(x, table, table[:1], "halves")
