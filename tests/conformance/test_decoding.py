"""Files as llama.cpp decodes them (stb_image) against ours in profile `llama.cpp`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_ref import images
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs import pairs
from llava_ref.profiles import PROFILES

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
LLAMA = PROFILES["llama.cpp"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> pairs.Pair:
    return pairs.build(tmp_path_factory.mktemp("pair"), pairs.TextSpec(n_layer=1), pairs.VisionSpec(n_block=2))


def picture() -> Image.Image:
    """Make noise, 89 x 113, in the colours and in the alpha channel."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (113, 89, 4), np.uint8), "RGBA")


@pytest.mark.parametrize(
    "kind, mode",
    [
        *[("png", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")],
        *[("bmp", mode) for mode in ("RGB", "RGBA", "L", "P", "1")],
        *[("gif", mode) for mode in ("L", "P", "1")],
    ],
)
def test_decoded_files_are_bit_exact(pair: pairs.Pair, tmp_path: Path, kind: str, mode: str) -> None:
    path = tmp_path / f"picture.{kind}"
    picture().convert(mode).save(path)
    (want,) = oracle.Oracle(pair.text, pair.mmproj).encode([path])
    found = images.decode(path.read_bytes(), exif=LLAMA.exif, alpha=LLAMA.alpha)
    assert np.array_equal(found, want.rgb)


def test_a_jpeg_is_within_three_levels(pair: pairs.Pair, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    slope = np.linspace(0, 255, 97).astype(np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(slope[:, None], slope[None, :], slope[:, None] // 2), -1)).save(path)
    (want,) = oracle.Oracle(pair.text, pair.mmproj).encode([path])
    found = images.decode(path.read_bytes(), exif=LLAMA.exif, alpha=LLAMA.alpha)
    assert np.abs(found.astype(int) - want.rgb).max() <= 3
