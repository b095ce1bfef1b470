"""What llama.cpp's tower saw against what ours would see: float32 pixels before any rounding, bit for bit."""

from typing import Any

import numpy as np
import pytest

from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs import pairs
from llava_ref.loading import load

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
SIZES = [  # width, height: tiny, thin both ways, the tower's own, one off it, far larger, primes
    *[(1, 1), (2, 1), (1, 3), (7, 5), (50, 170), (170, 50), (3, 200), (200, 3), (56, 56), (55, 57), (57, 55)],
    *[(56, 31), (31, 56), (112, 112), (113, 89), (89, 113), (336, 255), (500, 375), (641, 479), (97, 1009)],
]


@pytest.fixture(scope="module", params=[(56, 14), (48, 16)], ids=["56 pixels", "48 pixels"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pairs.Pair:
    size, patch = request.param
    vision = pairs.VisionSpec(n_block=2, image_size=size, patch_size=patch)
    return pairs.build(tmp_path_factory.mktemp("pair"), pairs.TextSpec(n_layer=1), vision)


def pixels(pair: pairs.Pair, rgb: list[np.ndarray], **quirks: str) -> list[np.ndarray]:
    tower = load(None, pair.mmproj, backend="numpy", profile="llama.cpp", quirks=quirks).tower
    return [tower.preprocess(picture).pixels[0] for picture in rgb]


def pictures() -> list[np.ndarray]:
    """Make noise with smooth parts and hard edges, at which a resampling kernel overshoots and rounds."""
    rng, found = np.random.default_rng(0), []
    for width, height in SIZES:
        slope = np.linspace(0, 255, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
        noise = rng.integers(0, 256, (height, width, 3))
        found.append(np.where(rng.random((height, width, 1)) < 0.5, slope, noise).astype(np.uint8))
    return found


def test_normalised_pixels_are_bit_exact(pair: pairs.Pair) -> None:
    rgb = pictures()
    llama = oracle.Oracle(pair.text, pair.mmproj).encode(rgb)
    for want, found, picture in zip(llama, pixels(pair, rgb), rgb, strict=True):
        assert found.dtype == want.pixels.dtype == np.float32
        assert (found == want.pixels).all(), f"{picture.shape}: {np.abs(found - want.pixels).max()}"


@pytest.mark.parametrize("square", ["pad-resize", "crop"])
def test_another_way_to_a_square_is_caught(pair: pairs.Pair, square: Any) -> None:
    rgb = pictures()
    llama = oracle.Oracle(pair.text, pair.mmproj).encode(rgb)
    found = pixels(pair, rgb, square=square)
    differ = [not np.array_equal(got, want.pixels) for got, want in zip(found, llama, strict=True)]
    assert sum(differ) >= 15, "square pictures are the same every way"
