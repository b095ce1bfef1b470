"""Rows are rounded to 15 bits and a sign, in groups of 256 numbers that share a scale."""

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from llava_ref.kernels.cpu.activations import CODES, GROUP, SUMS, RoundedRows, quantise
from llava_ref.kernels.cpu.launch import run


def rounded(x: np.ndarray, *, threads: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round rows (T, K): codes (T, n, 256) in order, sums (T, n, 16), scales (T, n)."""
    T, K = x.shape
    a = RoundedRows.of(T, K)
    run(quantise(x.ctypes.data, x.strides[0] // 4, a, T), threads=threads)
    at, n = a.address - a.room.ctypes.data, a.groups
    rows = a.room[at : at + T * a.row_bytes].reshape(T, -1)
    words = rows[:, : n * CODES].copy().view(np.int16).reshape(T, n, 4, 2, 32)
    sums = rows[:, n * CODES : n * (CODES + SUMS)].copy().view(np.float32).reshape(T, n, 16)
    scales = rows[:, n * (CODES + SUMS) :].copy().view(np.float32)[:, :n]
    return words.transpose(0, 1, 2, 4, 3).reshape(T, n, GROUP), sums, scales


def normal(T: int, K: int) -> np.ndarray:
    return np.random.default_rng(K).standard_normal((T, K)).astype(np.float32)


@pytest.mark.parametrize(("T", "K"), [(1, 256), (3, 576), (8, 1024), (2, 32), (1, 5), (2, 300)])
class TestRounding:
    def test_a_code_is_the_nearest_multiple_of_the_scale(self, T, K):
        x = normal(T, K)
        codes, _, scales = rounded(x)
        near = (codes * scales[..., None].astype(np.float64)).reshape(T, -1)
        bound = np.repeat(scales, GROUP, axis=1) * 0.501
        assert (np.abs(near[:, :K] - x) <= bound[:, :K]).all()
        assert np.linalg.norm(near[:, :K] - x) < 4e-5 * np.linalg.norm(x)

    def test_the_largest_of_a_group_is_32767(self, T, K):
        codes, _, scales = rounded(normal(T, K))
        assert (np.abs(codes).max(-1) == 32767).all() and (scales > 0).all()

    def test_what_is_behind_a_row_is_zero(self, T, K):
        wide = np.full((T, K + 300), 1e3, np.float32)
        wide[:, :K] = normal(T, K)
        codes, _, _ = rounded(wide[:, :K])
        assert (codes.reshape(T, -1)[:, K:] == 0).all()
        assert (codes == rounded(normal(T, K))[0]).all()

    def test_sums_are_of_16_codes(self, T, K):
        codes, sums, scales = rounded(normal(T, K))
        want = codes.reshape(*codes.shape[:2], 16, 16).sum(-1, dtype=np.int64).astype(np.float32)
        assert (sums == scales[..., None] * want).all()

    def test_any_number_of_threads_gives_the_same(self, T, K):
        one, three = rounded(normal(T, K)), rounded(normal(T, K), threads=3)
        assert all((a == b).all() for a, b in zip(one, three, strict=True))


def test_zeros_and_numbers_too_small_to_tell_from_them():
    for size in (0.0, 1e-38, 1e-34):
        codes, sums, scales = rounded(np.full((1, 256), size, np.float32))
        assert not codes.any() and not sums.any() and not scales.any()


def test_a_group_with_an_infinite_number_or_none_has_no_scale():
    for wrong in (np.inf, -np.inf, np.nan):
        x = normal(1, 768)
        x[0, 300] = wrong
        _, sums, scales = rounded(x)
        assert np.isnan(scales[0]).tolist() == [False, True, False]
        assert np.isnan(sums[0]).all(-1).tolist() == [False, True, False]


def test_large_and_small_numbers():
    for size in (1e-30, 1e30, 3e38):
        codes, _, scales = rounded(np.linspace(-size, size, 256, dtype=np.float32)[None])
        assert codes.min() == -32767 and codes.max() == 32767 and np.isfinite(scales).all()


def test_room_for_rows_starts_at_a_line_of_the_cache():
    a = RoundedRows.of(3, 1000)
    assert a.address % 64 == 0 and a.row_bytes % 64 == 0 and a.groups == 4
    assert a.room.ctypes.data + len(a.room) >= a.address + 3 * a.row_bytes
