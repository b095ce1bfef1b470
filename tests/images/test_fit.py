"""Test the four fits into a square against Pillow and transformers; the map back; the saved picture."""

import importlib.util
import json
from itertools import combinations

import numpy as np
import PIL
import pytest
from PIL import Image

from llava_ref.errors import ImageError
from llava_ref.images.fit import Preprocessed, Tile, crop, normalise, pad_resize, resize_pad, save_png, stretch
from llava_ref.images.resample import BICUBIC, BILINEAR

FILL = (122, 116, 104)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FITS = {
    "pad-resize": lambda rgb, size: pad_resize(rgb, size, FILL),
    "crop": crop,
    "resize-pad": lambda rgb, size: resize_pad(rgb, size, FILL, BICUBIC),
    "stretch": lambda rgb, size: stretch(rgb, size, BILINEAR),
}
RULES = list(FITS)
SIZES = [(1, 1), (1, 200), (200, 1), (56, 56), (57, 56), (56, 55), (61, 127), (127, 61), (300, 299), (33, 77), (2, 3)]
TALL = [(170, 50), (400, 90)]  # height, width: Pillow 13 begins with the vertical pass
VERTICAL_FIRST = int(PIL.__version__.split(".")[0]) >= 13


def noise(h, w):
    return np.random.default_rng([h, w]).integers(0, 256, (h, w, 3), dtype=np.uint8)


def bicubic(rgb, width, height, filter=Image.Resampling.BICUBIC):
    return np.asarray(Image.fromarray(rgb).resize((width, height), filter))


def run(rgb, rule, size=56):
    seen, affine = FITS[rule](rgb, size)
    tile = Tile(seen, affine, np.arange(16).reshape(4, 4))
    return Preprocessed(normalise(seen, MEAN, STD), (tile,), (rgb.shape[1], rgb.shape[0]))


# Against Pillow


@pytest.mark.parametrize("h, w", SIZES + TALL)
@pytest.mark.parametrize("size", [56, 37])
def test_pad_resize(h, w, size):
    long = max(h, w)
    square = Image.new("RGB", (long, long), FILL)
    square.paste(Image.fromarray(noise(h, w)), ((long - w) // 2, (long - h) // 2))
    assert np.array_equal(run(noise(h, w), "pad-resize", size).seen, bicubic(np.asarray(square), size, size))


@pytest.mark.parametrize("h, w", SIZES + TALL)
@pytest.mark.parametrize("size", [56, 37])
@pytest.mark.parametrize("kernel, theirs", [(BICUBIC, Image.Resampling.BICUBIC), (BILINEAR, Image.Resampling.BILINEAR)])
def test_resize_pad(h, w, size, kernel, theirs):
    scale = min(np.float32(size) / np.float32(w), np.float32(size) / np.float32(h))
    width, height = (min(int(np.ceil(np.float32(n) * scale)), size) for n in (w, h))
    canvas = Image.new("RGB", (size, size), FILL)
    inner = bicubic(bicubic(noise(h, w), width, h, theirs), width, height, theirs)
    canvas.paste(Image.fromarray(inner), ((size - width) // 2, (size - height) // 2))
    assert np.array_equal(resize_pad(noise(h, w), size, FILL, kernel)[0], np.asarray(canvas))


def test_resize_pad_takes_its_scale_in_float32():
    """Fit 25 x 35 into 336: the height is 240, and in float32 a little more, which rounds up."""
    seen = run(np.zeros((25, 35, 3), np.uint8), "resize-pad", 336).seen
    assert (seen == 0).all((1, 2)).sum() == 241


@pytest.mark.parametrize("h, w", SIZES)
def test_crop(h, w):
    short = min(h, w)
    width, height = int(37 * w / short), int(37 * h / short)
    left, top = (width - 37) // 2, (height - 37) // 2
    whole = bicubic(noise(h, w), width, height)
    assert np.array_equal(run(noise(h, w), "crop", 37).seen, whole[top : top + 37, left : left + 37])


@pytest.mark.parametrize("h, w", SIZES + TALL)
def test_stretch(h, w):
    if (h, w) in TALL and not VERTICAL_FIRST:
        pytest.skip("Pillow before 13 never begins with the vertical pass")
    want = bicubic(noise(h, w), 37, 37, Image.Resampling.BILINEAR)
    assert np.array_equal(run(noise(h, w), "stretch", 37).seen, want)


@pytest.mark.parametrize("rule", RULES)
def test_a_picture_of_the_towers_size_is_unchanged(rule):
    got = run(noise(56, 56), rule)
    assert np.array_equal(got.seen, noise(56, 56))
    assert (got.affine.scale_x, got.affine.scale_y, got.affine.shift_x, got.affine.shift_y) == (1, 1, 0, 0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("h, w", [(1, 10_000), (10_000, 1), (2, 65_535)])
def test_strips_need_no_square_of_their_length(rule, h, w):
    assert run(noise(h, w), rule, 336).pixels.shape == (1, 3, 336, 336)


def test_the_rules_differ():
    seen = [run(noise(61, 127), rule).seen for rule in RULES]
    assert not any(np.array_equal(one, other) for one, other in combinations(seen, 2))


# Normalised


@pytest.mark.parametrize("rule", RULES)
def test_pixels_are_three_float32_operations(rule):
    got = run(noise(61, 127), rule)
    assert got.pixels.dtype == np.float32 and got.pixels.shape == (1, 3, 56, 56) and got.pixels.flags.c_contiguous
    assert got.source == (127, 61)
    for channel in range(3):
        u8 = got.seen[..., channel].astype(np.float32)
        want = (u8 / np.float32(255) - np.float32(MEAN[channel])) / np.float32(STD[channel])
        assert np.array_equal(got.pixels[0, channel], want)


# Against transformers


def processors(size):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    options = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    square = {"size": {"height": size, "width": size}, "image_mean": MEAN, "image_std": STD}
    return {
        "crop": CLIPImageProcessorPil(**options),
        "pad-resize": LlavaImageProcessorPil(do_pad=True, **options),
        "stretch": Gemma3ImageProcessorPil(**square),
    }


@pytest.mark.oracle
@pytest.mark.parametrize("size", [56, 37])
def test_transformers_gives_the_same_floats(size):
    tall = TALL if VERTICAL_FIRST else []
    for rule, processor in processors(size).items():
        for h, w in SIZES + tall:
            want = processor(Image.fromarray(noise(h, w)), return_tensors="np")["pixel_values"]
            got = run(noise(h, w), rule, size).pixels
            assert np.array_equal(got, want), f"{rule} {h}x{w}: {np.abs(got - want).max()}"


# The map back


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("h, w", [(200, 200), (300, 170), (171, 300), (40, 31)])
def test_the_map_leads_back_to_a_spot_in_the_source(rule, h, w):
    rgb = np.zeros((h, w, 3), np.uint8)
    y, x = h // 2 - h // 9, w // 2 + w // 7
    rgb[y : y + 5, x : x + 3] = 255
    got = run(rgb, rule, 112)
    yy, xx = np.mgrid[:112, :112] + 0.5
    mass = np.clip(got.seen[..., 0].astype(float) - 130, 0, None)  # brighter than any padding
    centre = got.affine.to_source((mass * xx).sum() / mass.sum(), (mass * yy).sum() / mass.sum())
    assert np.allclose(centre, (x + 1.5, y + 2.5), atol=0.6 * max(1, got.affine.scale_x))
    assert np.allclose(got.affine.to_model(*got.affine.to_source(3.25, 77.5)), (3.25, 77.5))


def test_the_corners_of_the_source():
    wide = np.zeros((100, 201, 3), np.uint8)
    pad, cropped, fit, stretched = (run(wide, rule, 50).affine for rule in RULES)
    assert pad.to_source(0, 0) == (0, -50) and np.allclose(pad.to_source(50, 50), (201, 151))
    assert np.allclose(cropped.to_model(0, 0), (-25, 0)) and np.allclose(cropped.to_model(201, 100), (75, 50))
    assert fit.to_model(0, 0) == (0, 12) and np.allclose(fit.to_model(201, 100), (50, 37))
    assert cropped.scale_x == 201 / 100 and cropped.scale_y == 2  # each axis is rounded by itself
    assert stretched.to_source(0, 0) == (0, 0) and np.allclose(stretched.to_source(50, 50), (201, 100))


# Saved


def test_the_fitted_picture_is_saved_with_its_map(tmp_path):
    got = run(noise(61, 127), "resize-pad")
    save_png(got, tmp_path / "seen.png")
    with Image.open(tmp_path / "seen.png") as image:
        assert np.array_equal(np.asarray(image), got.seen)
        facts = json.loads(image.text["llava_ref"])
    assert facts["source"] == [127, 61]
    scale_x, shift_y = facts["affine"]["scale_x"], facts["affine"]["shift_y"]
    assert (scale_x, shift_y) == (got.affine.scale_x, got.affine.shift_y)


def test_an_error_names_a_path_that_cannot_be_written(tmp_path):
    with pytest.raises(ImageError, match="seen.png: file: cannot be written: No such file or directory"):
        save_png(run(noise(5, 5), "crop"), tmp_path / "missing" / "seen.png")
