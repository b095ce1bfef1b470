"""What each query sees: the masks against a definition written out, key by key, and in both backends' attention."""

import tracemalloc
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from llava_ref.ops import get_ops
from llava_ref.ops.protocol import KV
from llava_ref.ops.sees import Sees, groups

from ..support.helpers import close, rand

# T queries at the end of S positions
SIZES = [(1, 1), (2, 4), (1, 13), (5, 5), (4, 11), (13, 29)]
PICTURES = [-1, 0, 0, 0, -1, -1, 1, 1, 1, 1, 1, 2, -1, -1, 3, 3, 3, -1, 4, 4, 4, 4, -1, 5, 6, 6, -1, 7, 7]


def last(T, S, causal=True, window=None, pictures=False):
    """Describe the last T of S positions, with pictures where `PICTURES` has them."""
    key, numbers = np.arange(S), np.array(PICTURES[:S])
    return Sees(key[S - T :], key, causal, window, (numbers[S - T :], numbers) if pictures else None)


def seen(i, j, causal, window, pictures):
    """Say whether position i sees position j."""
    together = pictures and PICTURES[i] >= 0 and PICTURES[i] == PICTURES[j]
    before = j <= i or not causal or together
    near = window is None or i - j < window
    return before and near


WAYS = list(product([True, False], [None, 1, 3, 8], [True, False]))


@pytest.mark.parametrize("causal, window, pictures", WAYS)
@pytest.mark.parametrize("T, S", SIZES)
def test_a_mask_is_the_definition(T, S, causal, window, pictures):
    sees = last(T, S, causal, window, pictures)
    want = [[not seen(i, j, causal, window, pictures) for j in range(S)] for i in range(S - T, S)]
    assert sees.hidden().tolist() == want
    mask = sees.mask()
    if mask is None:
        assert not np.any(want)
    else:
        assert np.any(want) and (mask == np.where(want, -np.inf, 0)).all()


def test_the_ways_differ():
    masks = {(way, last(13, 29, *way).hidden().tobytes()) for way in WAYS}
    assert len({mask for _, mask in masks}) == len(masks) - 4, "pictures add nothing where everything ahead is seen"


def test_a_window_hides_the_beginning_of_a_picture_too():
    """Positions 6..10 are a picture: its last row does not see the first two through a window of 3, its first all."""
    hidden = last(29, 29, window=3, pictures=True).hidden()
    assert np.flatnonzero(~hidden[10]).tolist() == [8, 9, 10]
    assert np.flatnonzero(~hidden[6]).tolist() == [4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("window, pictures", list(product([None, 5], [True, False])))
def test_parts_are_the_rows_of_the_whole(window, pictures):
    whole = last(13, 29, True, window, pictures)
    for start, end, n_keys in ((0, 13, 29), (0, 1, 17), (3, 10, 26), (12, 13, 29)):
        assert (whole.part(start, end, n_keys).hidden() == whole.hidden()[start:end, :n_keys]).all()


def gaps(T, S, causal, window, pictures):
    """Describe orders with holes, queries from the middle of the keys as well as from their end."""
    key = np.cumsum(np.random.default_rng([T, S]).integers(1, 5, S))
    at, numbers = np.unique(np.linspace(S // 3, S - 1, T).astype(int)), np.array(PICTURES[:S])
    return Sees(key[at], key, causal, window, (numbers[at], numbers) if pictures else None)


def shuffled(T, S, causal, window, pictures):
    """Describe queries that are not in order."""
    sees, order = last(T, S, causal, window, pictures), np.random.default_rng([T, S]).permutation(T)
    numbers = (sees.pictures[0][order], sees.pictures[1]) if pictures else None
    return Sees(sees.query[order], sees.key, causal, window, numbers)


@pytest.mark.parametrize("causal, window, pictures", WAYS)
@pytest.mark.parametrize("orders", [last, shuffled, gaps])
@pytest.mark.parametrize("T, S", SIZES)
def test_ranges_are_the_mask(orders, T, S, causal, window, pictures):
    sees = orders(T, S, causal, window, pictures)
    assert [[*range(*keys)] for keys in sees.ranges()] == [np.flatnonzero(row).tolist() for row in ~sees.hidden()]


@pytest.mark.parametrize("causal, window, pictures", WAYS)
@pytest.mark.parametrize("orders", [last, shuffled, gaps])
@pytest.mark.parametrize("block", [1, 2, 4, 16])
def test_blocks_reach_what_any_query_sees_and_share_what_each_sees(orders, block, causal, window, pictures):
    sees = orders(13, 29, causal, window, pictures)
    starts, seen = range(0, len(sees.query), block), ~sees.hidden()
    parts = zip(starts, sees.reach(block), sees.common(block), strict=True)
    for rows, reach, common in ((seen[start : start + block], *ranges) for start, *ranges in parts):
        some = np.flatnonzero(rows.any(0))
        assert reach.tolist() == [some[0], some[-1] + 1] and [*range(*common)] == np.flatnonzero(rows.all(0)).tolist()
        assert reach[0] <= common[0] <= common[1] <= reach[1]


def test_ranges_of_a_million_positions_take_128_bytes_each():
    key = np.arange(1 << 20)
    picture = np.where(key % 1000 < 256, key // 1000, -1)
    sees = Sees(key, key, window=1024, pictures=(picture, picture))
    tracemalloc.start()
    try:
        reach, common = sees.reach(128), sees.common(128)
        assert tracemalloc.get_traced_memory()[1] < 128 * len(key)
    finally:
        tracemalloc.stop()
    assert reach[-1].tolist() == [(1 << 20) - 128 - 1023, 1 << 20] and reach.shape == (1 << 13, 2)
    assert (reach[:, 1] - reach[:, 0]).max() < 1024 + 128 + 256 and (common[:, 1] > common[:, 0]).all()


@pytest.mark.parametrize(
    "key, ours, theirs, problem",
    [
        ([0, 2, 1], [-1], [-1, -1, -1], "key: orders fall"),
        ([0, 1, 2, 3], [-1], [0, -1, 0, -1], "keys of one picture stand apart"),
        ([0, 1, 2, 3], [0], [-1, -1, -1, 0], "a query stands outside"),
        ([2, 3, 4, 5], [0], [-1, -1, -1, 0], "a query stands outside"),
    ],
)
def test_what_is_no_range_is_refused(key, ours, theirs, problem):
    sees = Sees(np.array([1]), np.array(key), pictures=(np.array(ours), np.array(theirs)))
    for ranges in (sees.ranges, lambda: sees.reach(4), lambda: sees.common(4)):
        with pytest.raises(ValueError, match=problem):
            ranges()


def test_a_tower_sees_everything():
    assert Sees.all(7).reach(4).tolist() == Sees.all(7).common(4).tolist() == [[0, 7], [0, 7]]
    assert not Sees.all(7).hidden().any() and Sees.all(7).hidden().shape == (7, 7) and Sees.all(7).mask() is None


@pytest.mark.parametrize("backend, precision", list(product(["numpy", "torch"], ["exact", "ggml"])))
@pytest.mark.parametrize("causal, window, pictures", WAYS)
def test_attention_is_that_over_the_keys_seen(backend, precision, causal, window, pictures):
    ops, sees, scale = get_ops(backend, "cpu", 1, 0, precision), last(5, 13, causal, window, pictures), 0.4
    q, k, v = rand(5, 6, 8), rand(13, 2, 8, seed=1), rand(13, 2, 8, seed=2)
    given = ops.array(q), KV(ops.array(k), ops.array(v)), scale, ops.plan(sees)
    found, weights = ops.numpy(ops.attention(*given)), ops.numpy(ops.attention_weights(*given))
    for i in range(5):
        keys = [j for j in range(13) if seen(8 + i, j, causal, window, pictures)]
        for h in range(6):
            scores = np.exp(q[i, h].astype(np.float64) @ k[keys, h // 3].T * scale)
            close(found[i, 8 * h : 8 * h + 8], scores / scores.sum() @ v[keys, h // 3], 1e-6)
            close(weights[h, i, keys], scores / scores.sum(), 1e-6)
            assert not np.delete(weights[h, i], keys).any()


GROUPS = np.array([0, 0, 0, 1, 1, 2, 4, 4, 4, 4, 5, 5, 9])


@pytest.mark.parametrize("backend, precision", [("numpy", "exact"), ("torch", "exact"), ("torch", "fast")])
def test_groups_see_only_themselves(backend, precision):
    """Windows of a tower: what a query attends to is its own group, and so is its range of keys."""
    if precision == "fast":
        pytest.importorskip("llvmlite")
    sees = replace(Sees.all(13), within=groups(GROUPS))
    assert (sees.hidden() == (GROUPS[:, None] != GROUPS)).all()
    assert [[*range(*keys)] for keys in sees.ranges()] == [np.flatnonzero(GROUPS == group).tolist() for group in GROUPS]
    assert (sees.part(2, 9, 11).hidden() == sees.hidden()[2:9, :11]).all()
    ops, scale = get_ops(backend, "cpu", 1, 0, precision), 0.4
    q, k, v = (rand(13, 2, 16, seed=seed) for seed in range(3))
    found = ops.numpy(ops.attention(ops.array(q), KV(ops.array(k), ops.array(v)), scale, ops.plan(sees)))
    for i, group in enumerate(GROUPS):
        keys = GROUPS == group
        for h in range(2):
            scores = np.exp(q[i, h].astype(np.float64) @ k[keys, h].T * scale)
            close(
                found[i, 16 * h : 16 * h + 16],
                scores / scores.sum() @ v[keys, h],
                1e-6 if precision == "exact" else 5e-3,
            )
