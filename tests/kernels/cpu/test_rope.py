"""Turned pairs against float64."""

from typing import get_args

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite")
from llava_ref.kernels import reference
from llava_ref.kernels.cpu.launch import run
from llava_ref.kernels.cpu.rope import rope
from llava_ref.ops.arrays import Pairs

from ...support.helpers import close, rand


def turned(x: Tensor, cos: Tensor, sin: Tensor, at: Tensor, pairs: str, out: Tensor, threads: int = 1) -> Tensor:
    run(rope(*(y.data_ptr() for y in (x, out, cos, sin, at)), *x.shape, pairs), threads=threads)
    return out


@pytest.mark.parametrize("pairs", get_args(Pairs))
@pytest.mark.parametrize(("T", "H", "dh"), [(1, 9, 64), (3, 2, 72), (2, 4, 128), (5, 1, 6), (2, 3, 80), (300, 8, 32)])
def test_rows_are_turned_by_their_own_positions(T: int, H: int, dh: int, pairs: str) -> None:
    x, angle = torch.from_numpy(rand(T, H, dh)), 3 * torch.from_numpy(rand(50, dh // 2))
    cos, sin, at = angle.cos(), angle.sin(), (torch.arange(T) * 7 + 3) % 50
    want = reference.rope(x.double(), cos[at].double(), sin[at].double(), pairs)
    found = turned(x, cos, sin, at, pairs, torch.empty_like(x))
    close(found.numpy(), want.numpy(), 1e-7)
    assert torch.equal(found, turned(x, cos, sin, at, pairs, torch.empty_like(x), threads=3))
    assert torch.equal(found, turned(y := x.clone(), cos, sin, at, pairs, y))


def test_an_odd_head_is_refused() -> None:
    with pytest.raises(ValueError, match="head_size: 7"):
        rope(0, 0, 0, 0, 0, 1, 1, 7, "halves")
