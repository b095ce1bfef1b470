"""Test bicubic and bilinear resizing against Pillow, bit for bit."""

import tracemalloc

import numpy as np
import PIL
import pytest
from PIL import Image

from llava_ref.images.resample import BICUBIC, BILINEAR, resize, resize_padded

VERTICAL_FIRST = int(PIL.__version__.split(".")[0]) >= 13  # what this Pillow does with tall pictures


KERNELS = {"bicubic": (BICUBIC, Image.Resampling.BICUBIC), "bilinear": (BILINEAR, Image.Resampling.BILINEAR)}
each_kernel = pytest.mark.parametrize("kernel, theirs", KERNELS.values(), ids=KERNELS.keys())


def pillow(rgb, width, height, filter=Image.Resampling.BICUBIC):
    return np.asarray(Image.fromarray(rgb).resize((width, height), filter))


def two_calls(rgb, width, height, filter=Image.Resampling.BICUBIC):
    return pillow(pillow(rgb, width, rgb.shape[0], filter), width, height, filter)


def pictures(n, seed):
    """Yield noise, and black and white (the kernel overshoots both ways), of odd sizes, some of them thin."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        h, w, height, width = (int(x) for x in rng.integers(1, 150, 4))
        h, w = (1 if i % 11 == 0 else h), (1 if i % 13 == 0 else w)
        height, width = (h if i % 7 == 0 else height), (w if i % 5 == 0 else width)
        rgb = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        yield (rgb > 127) * np.uint8(255) if i % 3 == 0 else rgb, width, height, rng


@each_kernel
def test_horizontal_first_is_two_calls_of_pillow(kernel, theirs):
    for rgb, width, height, _ in pictures(150, 0):
        got = resize(rgb, width, height, kernel=kernel)
        assert got.dtype == np.uint8 and got.flags.c_contiguous
        assert np.array_equal(got, two_calls(rgb, width, height, theirs)), (rgb.shape, width, height)


@each_kernel
def test_pillows_order_is_one_call_of_pillow(kernel, theirs):
    tall = 0
    for rgb, width, height, _ in pictures(250, 1):
        h, w = rgb.shape[:2]
        vertical = height < h and h - height > 2 * (w - width)
        tall += vertical
        if vertical and not VERTICAL_FIRST:
            continue
        got = resize(rgb, width, height, kernel=kernel, order="pillow")
        assert np.array_equal(got, pillow(rgb, width, height, theirs)), (h, w, height)
    assert tall > 20


def test_the_order_matters():
    rgb = np.random.default_rng(0).integers(0, 256, (170, 50, 3), dtype=np.uint8)
    one, other = (resize(rgb, 28, 96, kernel=BICUBIC, order=order).astype(int) for order in ("horizontal", "pillow"))
    assert 1 <= np.abs(one - other).max() <= 10


@pytest.mark.skipif(not VERTICAL_FIRST, reason="Pillow before 13 never begins with the vertical pass")
@pytest.mark.parametrize("step, same", [(0, True), (1, False)])
def test_the_size_at_which_pillow_changes_its_order(step, same):
    rgb = np.random.default_rng(0).integers(0, 256, (90 + step, 50, 3), dtype=np.uint8)  # loses 20 + step and 10
    assert np.array_equal(pillow(rgb, 40, 70), two_calls(rgb, 40, 70)) is same
    assert np.array_equal(pillow(rgb, 40, 70), resize(rgb, 40, 70, kernel=BICUBIC, order="pillow"))


@pytest.mark.parametrize("kernel", [BICUBIC, BILINEAR], ids=KERNELS.keys())
@pytest.mark.parametrize("order", ["horizontal", "pillow"])
def test_a_window_is_a_part_of_the_whole(order, kernel):
    for rgb, width, height, rng in pictures(60, 2):
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        right, bottom = int(rng.integers(left + 1, width + 1)), int(rng.integers(top + 1, height + 1))
        whole = resize(rgb, width, height, kernel=kernel, order=order)
        window = resize(rgb, width, height, kernel=kernel, order=order, window=(left, top, right, bottom))
        assert np.array_equal(window, whole[top:bottom, left:right])


@each_kernel
@pytest.mark.parametrize("fill", [(122, 116, 104), (0, 255, 127)])
def test_padding_equals_that_of_a_stored_square(fill, kernel, theirs):
    for rgb, size, _, _ in pictures(100, 3):
        h, w = rgb.shape[:2]
        side = max(h, w)
        square = np.empty((side, side, 3), np.uint8)
        square[:] = fill
        top, left = (side - h) // 2, (side - w) // 2
        square[top : top + h, left : left + w] = rgb
        assert np.array_equal(resize_padded(rgb, size, fill, kernel), pillow(square, size, size, theirs)), (h, w, size)


@pytest.mark.parametrize("h, w", [(1, 20_000), (20_000, 1), (3, 9_999)])
def test_strips(h, w):
    rgb = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    width, height = (336, 1) if w > h else (1, 336)
    assert np.array_equal(resize(rgb, width, height, kernel=BICUBIC), two_calls(rgb, width, height))
    assert resize_padded(rgb, 56, (1, 2, 3), BICUBIC).shape == (56, 56, 3)


def test_temporary_arrays_stay_small():
    rgb = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)  # 9 MB
    tracemalloc.start()
    got = resize(rgb, 336, 252, kernel=BICUBIC)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(got, pillow(rgb, 336, 252))
    assert peak < 40e6
