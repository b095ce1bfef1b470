"""Attention of many rows, by tiles, by vectors and by torch, against float64 of the same keys and values."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite")
from llava_ref.kernels import reference
from llava_ref.kernels.cpu import prompt_attention
from llava_ref.kernels.cpu.processor import SET, TILES
from llava_ref.kernels.cpu.vector_attention import by_vectors
from llava_ref.ops.sees import Sees

from ...support.helpers import close, rand

Attend = Callable[..., Tensor]
tiles = pytest.mark.skipif(not TILES, reason="no tiles at this level")
KEY = np.arange(300)
PICTURE = np.where((KEY >= 40) & (KEY < 240), 0, -1)
SEES = {
    "causal": Sees(KEY, KEY),
    "behind a prompt": Sees(KEY[203:], KEY),
    "window": Sees(KEY, KEY, window=70),
    "pictures": Sees(KEY, KEY, pictures=(PICTURE, PICTURE)),
    "pictures in a window": Sees(KEY, KEY, window=100, pictures=(PICTURE, PICTURE)),
    "all": Sees(KEY, KEY, causal=False),
}


def rounded_values(*args: object) -> Tensor:
    return prompt_attention.by_tiles(*args, 1, 2)


def exact_values(*args: object) -> Tensor:
    return prompt_attention.by_tiles(*args, 2, 2)


def two_terms(*args: object) -> Tensor:
    *arrays, threads = args
    return prompt_attention.by_tiles(*arrays, 2, threads)


def vectors(*args: object) -> Tensor:
    return by_vectors(*args, 2)


WAYS = [
    pytest.param(rounded_values, 3e-3, marks=tiles),
    pytest.param(exact_values, 1e-5, marks=tiles),
    pytest.param(vectors, 1e-6),
    pytest.param(prompt_attention.by_torch, 1e-6),
]


def arrays(T: int, S: int, H: int, Hkv: int, dh: int, half: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, and keys and values as a cache of a longer room shows them, NaN behind the last."""
    cache = torch.from_numpy(rand(2, Hkv, S + 9, dh))
    cache[:, :, S:] = torch.nan
    cache = cache.half() if half else cache
    return torch.from_numpy(rand(T, H, dh)), cache[0, :, :S].transpose(0, 1), cache[1, :, :S].transpose(0, 1)


def wanted(q: Tensor, k: Tensor, v: Tensor, hidden: np.ndarray | None, scale: float) -> Tensor:
    mask = torch.zeros(len(q), len(k), dtype=torch.float64)
    mask = mask if hidden is None else mask.masked_fill(torch.from_numpy(hidden), -torch.inf)
    return reference.attention(q.double(), k.double(), v.double(), scale, mask)


@pytest.mark.parametrize(("attend", "bound"), WAYS)
@pytest.mark.parametrize("dh", [64, 72])
@pytest.mark.parametrize("name", SEES)
def test_each_query_sees_its_range(attend: Attend, bound: float, dh: int, name: str) -> None:
    sees = SEES[name]
    q, k, v = arrays(len(sees.query), len(sees.key), 4, 2, dh)
    found = attend(q, k, v, torch.from_numpy(sees.ranges()), dh**-0.5)
    close(found.numpy(), wanted(q, k, v, sees.hidden(), dh**-0.5).numpy(), bound)


@pytest.mark.parametrize(("attend", "bound"), WAYS)
@pytest.mark.parametrize(("T", "dh"), [(577, 64), (33, 256), (65, 20)])
@pytest.mark.parametrize("half", [False, True])
def test_all_see_all(attend: Attend, bound: float, T: int, dh: int, half: bool) -> None:
    q, k, v = arrays(T, T, 3, 3, dh, half)
    close(attend(q, k, v, None, dh**-0.5).numpy(), wanted(q, k, v, None, dh**-0.5).numpy(), bound)
    if not half:
        k, v = k.contiguous(), v.contiguous()
        close(attend(q, k, v, None, dh**-0.5).numpy(), wanted(q, k, v, None, dh**-0.5).numpy(), bound)


@pytest.mark.parametrize("attend", [pytest.param(rounded_values, marks=tiles), pytest.param(exact_values, marks=tiles)])
def test_many_heads_go_in_turns_through_a_small_room(attend: Attend, monkeypatch: pytest.MonkeyPatch) -> None:
    sees = SEES["causal"]
    q, k, v = arrays(300, 300, 6, 3, 64)
    seen = torch.from_numpy(sees.ranges())
    found = attend(q, k, v, seen, 0.125)
    monkeypatch.setattr(prompt_attention, "MOST_ROOM", 1 << 18)
    assert torch.equal(attend(q, k, v, seen, 0.125), found)


@pytest.mark.parametrize("attend", [pytest.param(two_terms, marks=tiles), by_vectors])
def test_threads_change_no_bit(attend: Attend) -> None:
    q, k, v = arrays(300, 300, 4, 2, 64)
    seen = torch.from_numpy(SEES["causal"].ranges())
    one, three = (attend(q, k, v, seen, 0.125, threads) for threads in (1, 3))
    assert torch.equal(one, three)


@pytest.mark.parametrize(("T", "past", "dh", "window", "half"), [
    (1, 0, 16, None, False), (97, 0, 17, None, True), (95, 64, 250, 30, True), (200, 63, 129, 64, False),
    (25, 300, 40, 7, True),
])  # fmt: skip
def test_vectors_have_odd_sizes(T: int, past: int, dh: int, window: int | None, half: bool) -> None:
    key = np.arange(past + T)
    sees = Sees(key[past:], key, window=window)
    q, k, v = arrays(T, past + T, 6, 2, dh, half)
    found = vectors(q, k, v, torch.from_numpy(sees.ranges()), dh**-0.5)
    close(found.numpy(), wanted(q, k, v, sees.hidden(), dh**-0.5).numpy(), 1e-6)


def test_a_query_does_not_depend_on_those_beside_it() -> None:
    sees = SEES["pictures in a window"]
    q, k, v = arrays(300, 300, 2, 1, 64)
    seen = torch.from_numpy(sees.ranges())
    together = vectors(q, k, v, seen, 0.125)
    for first, end in (0, 1), (90, 100), (171, 300):
        alone = vectors(q[first:end], k, v, seen[first:end], 0.125)
        assert torch.equal(alone, together[first:end])


def test_the_way_is_chosen_by_the_processor_and_by_what_keys_are_kept_in() -> None:
    for half, way, bound in (True, exact_values, 1e-5), (False, rounded_values, 3e-3):
        q, k, v = arrays(40, 40, 2, 2, 64, half)
        found = prompt_attention.prompt_attention(q, k, v, None, 0.125)
        close(found.numpy(), wanted(q, k, v, None, 0.125).numpy(), bound)
        way = way if TILES else prompt_attention.by_torch if SET == "portable" else vectors
        assert torch.equal(found, way(q, k, v, None, 0.125))
    q, k, v = arrays(12, 12, 2, 2, 288)  # larger heads than there is room for
    close(prompt_attention.prompt_attention(q, k, v, None, 0.06).numpy(), wanted(q, k, v, None, 0.06).numpy(), 1e-6)


@pytest.mark.parametrize(("attend", "bound"), WAYS[1:])
def test_large_scores_do_not_overflow_and_no_number_shows(attend: Attend, bound: float) -> None:
    q, k, v = arrays(70, 70, 2, 2, 64)
    q *= 50
    close(attend(q, k, v, None, 0.125).numpy(), wanted(q, k, v, None, 0.125).numpy(), 1e-4)
    k[3, 1, 5] = torch.nan
    found = attend(q, k, v, None, 0.125)
    assert found[:, 64:].isnan().all() and found[:, :64].isfinite().all()
