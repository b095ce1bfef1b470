"""How much memory converted weights may take: of the machine, or of the card."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava_ref.gguf.file import TensorView
from llava_ref.ops import weight_budget
from llava_ref.ops.weight_budget import default_budget

MIB = 1 << 20


@pytest.fixture
def files() -> list[Any]:
    """One file: a million weights in Q8_0, and some in F32, which no conversion copies."""
    blocks = TensorView("a", "Q8_0", (1024, 1024), memoryview(bytes(1024 * 1024 // 32 * 34)))
    plain = TensorView("b", "F32", (1024,), memoryview(bytes(4096)))
    return [SimpleNamespace(tensors={"a": blocks, "b": plain})]


@pytest.mark.parametrize("free, expected", [(8 * MIB, 4 * MIB), (8 * MIB - 2, 0)])
def test_float32_is_kept_for_all_weights_or_none(files, monkeypatch, free, expected):
    monkeypatch.setattr(weight_budget, "free_memory", lambda: free)
    assert default_budget(files) == expected


def test_a_card_holds_the_packed_weights_first(files, monkeypatch):
    packed = sum(view.data.nbytes for view in files[0].tensors.values())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(weight_budget, "free_memory", lambda: 1 << 60)
    for free, exact, fast in (
        (packed + 8 * MIB, 4 * MIB, 4 * MIB),
        (packed + 7 * MIB, 0, 7 * MIB // 2),
        (packed - 1, 0, 0),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 1 << 60))
        assert default_budget(files, "cuda", "exact") == exact
        assert default_budget(files, "cuda", "fast") == fast
