"""Transparent pictures as transformers 5.24 reads them: its processors, its loader, and `conform` beside it.

Measured once with torchvision 0.29.1, which is no requirement here: the processors of that backend (CLIPImageProcessor,
LlavaImageProcessor, Gemma3ImageProcessor) lay PIL images over white, too, and take paths by their stored colours.
"""

import base64
import io
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref import images
from llava_ref.conformance.compare.conform import conform
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.reference import Case
from llava_ref.profiles import PROFILES

from ..support.image_files import encode, noise

reason = reference_hf.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
ALPHA = PROFILES["hf"].alpha
PROCESSORS = {
    "CLIPImageProcessorPil": "clip.image_processing_pil_clip",
    "LlavaImageProcessorPil": "llava.image_processing_pil_llava",
    "Gemma3ImageProcessorPil": "gemma3.image_processing_pil_gemma3",
}
RGBA = Image.fromarray(noise(24, 20, 4))
PALETTE = RGBA.convert("RGB").quantize(32)
FEW, GREY = PALETTE.convert("RGB"), RGBA.convert("L").quantize(8).convert("L")
CHANNELS = {  # pictures with an alpha for each pixel or index: the loader drops it
    "RGBA": encode(RGBA, "PNG"),
    "grey and alpha": encode(RGBA.convert("LA"), "PNG"),
    "palette, an alpha for each": encode(PALETTE, "PNG", transparency=bytes(range(0, 256, 8))),
    "WebP": encode(RGBA, "WEBP", lossless=True, exact=True),
}
KEYS = {  # pictures with one transparent colour: Pillow keeps it in `info`, so the loader's RGB still has it
    "palette, one index": encode(PALETTE, "PNG", transparency=3),
    "RGB, one colour": encode(FEW, "PNG", transparency=FEW.getpixel((0, 0))),
    "grey, one value": encode(GREY, "PNG", transparency=GREY.getpixel((1, 1))),
    "GIF": encode(PALETTE, "GIF", transparency=3),
}
FILES = pytest.mark.parametrize("data", (CHANNELS | KEYS).values(), ids=CHANNELS | KEYS)
IGNORED = pytest.mark.filterwarnings("ignore:Palette images with Transparency")


def processed(name: str, picture: object) -> np.ndarray:
    """Return what a processor of transformers makes of a picture before it resizes anything, (h, w, 3) uint8."""
    module = import_module(f"transformers.models.{PROCESSORS[name]}")
    keep = dict.fromkeys(["do_resize", "do_center_crop", "do_rescale", "do_normalize"], False)
    (pixels,) = getattr(module, name)(**keep)(picture, return_tensors="np")["pixel_values"]
    return pixels.transpose(1, 2, 0)


@IGNORED
@FILES
@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_lay_pictures_over_white(name: str, data: bytes) -> None:
    found = images.decode(data, alpha=ALPHA)
    assert np.array_equal(found, processed(name, Image.open(io.BytesIO(data))))
    assert not np.array_equal(found, images.decode(data, alpha="convert")), "so this picture shows nothing"
    assert np.array_equal(found, images.load(Image.open(io.BytesIO(data)), alpha=ALPHA).rgb)


@IGNORED
@FILES
def test_the_loader_of_paths_and_urls_drops_an_alpha_channel(data: bytes) -> None:
    """`load_image` converts before a processor sees the picture; docs/pictures.md says how to get that here."""
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    alpha = "convert" if data in CHANNELS.values() else "white"
    assert np.array_equal(images.decode(data, alpha=alpha), processed("CLIPImageProcessorPil", uri))


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_every_alpha_rounds_as_theirs(value: int) -> None:
    from transformers.image_transforms import convert_to_rgb

    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(256, 0)
    picture = Image.fromarray(
        np.concatenate([levels, levels[:, ::-1], np.full_like(levels, value), levels.swapaxes(0, 1)], 2)
    )
    assert np.array_equal(images.load(picture, alpha=ALPHA).rgb, convert_to_rgb(picture, return_numpy=True))


def test_conform_names_the_quirk(tmp_path) -> None:
    path = tmp_path / "transparent.png"
    path.write_bytes(CHANNELS["RGBA"])
    case = Case(*llava_ref.embedded(), (path,), "USER: <image>\nWhat is this? ASSISTANT:")
    run = Transformers().run(case)

    def found(**quirks: str) -> list[tuple[str, tuple[str, ...]]]:
        report = conform(lambda q: llava_ref.load(case.text, case.mmproj, profile="hf", quirks=quirks | q), case, run)
        return [(finding.stage, finding.explained) for finding in report.findings]

    assert found() == []
    assert found(alpha="convert") == found(alpha="drop") == [("image.rgb", ("alpha=white",))]
