"""The towers CLIP and SigLIP: how they fit a picture, the place it takes, the average of patches, what is refused."""

import numpy as np
import pytest

from llava_ref import gguf
from llava_ref.conformance.pairs.gemma3 import SiglipSpec, siglip_metadata, siglip_tensors
from llava_ref.conformance.pairs.pairs import Random, VisionSpec, vision_metadata, vision_tensors
from llava_ref.conformance.pairs.writing import held, write
from llava_ref.errors import GGUFError
from llava_ref.images import fit
from llava_ref.images.resample import BICUBIC, BILINEAR
from llava_ref.models import tower_family
from llava_ref.models.clip import Clip
from llava_ref.models.family import Span, encode
from llava_ref.models.siglip import Siglip, pool
from llava_ref.ops import get_ops
from llava_ref.profiles import PROFILES, Quirks, resolve

from ..support.helpers import close, rand, rel_rms

WIDTH = 60  # of the decoder
RGB = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
SPECS = {"clip": VisionSpec(), "siglip": SiglipSpec()}


@pytest.fixture
def opened(tmp_path_factory):
    """A tower's file with these keys and tensors changed; None takes one out."""

    def make(spec, keys={}, tensors={}):  # noqa: B006
        clip = isinstance(spec, VisionSpec)
        metadata = (vision_metadata if clip else siglip_metadata)(spec, WIDTH) | keys
        weights = (vision_tensors if clip else siglip_tensors)(spec, WIDTH, Random(0, 1.0)) | tensors
        path = tmp_path_factory.mktemp("tower") / "mmproj.gguf"
        write(path, {k: v for k, v in metadata.items() if v is not None}, {k: v for k, v in weights.items() if v})
        return gguf.read(path)

    return make


def loaded(file, quirks=Quirks(), backend="numpy"):
    return tower_family(file).load(file, get_ops(backend, "cpu", 1, 1 << 24), quirks)


def test_the_projector_names_the_family(opened):
    assert tower_family(opened(SPECS["clip"])) is Clip and tower_family(opened(SPECS["siglip"])) is Siglip
    with pytest.raises(GGUFError, match="clip.projector_type: 'resampler' is not supported, expected 'mlp',"):
        tower_family(opened(SPECS["clip"], {"clip.projector_type": "resampler"}))


FILL = (122, 116, 104)  # CLIP's mean, int(mean * 255), and llama.cpp's constant
SQUARES = {
    "pad-resize": lambda: fit.pad_resize(RGB, 56, FILL),
    "crop": lambda: fit.crop(RGB, 56),
    "resize-pad": lambda: fit.resize_pad(RGB, 56, FILL, BICUBIC),
}


@pytest.mark.parametrize("square", SQUARES)
def test_clip_fits_a_picture_by_the_quirk(opened, square):
    tower = loaded(opened(SPECS["clip"]), resolve("llava", {"square": square}))
    found, (seen, affine) = tower.preprocess(RGB), SQUARES[square]()
    np.testing.assert_array_equal(found.seen, seen)
    assert found.affine == affine and found.source == (47, 31)
    c = tower.config
    np.testing.assert_array_equal(found.pixels, fit.normalise(seen, c.mean, c.std))


@pytest.mark.parametrize("square, colour", [("pad-resize", [25, 51, 76]), ("resize-pad", [122, 116, 104])])
def test_a_file_with_another_mean_pads_with_it_but_in_llama_cpp(opened, square, colour):
    mean = [0.1, 0.2, 0.3]
    tower = loaded(opened(SPECS["clip"], {"clip.vision.image_mean": mean}), resolve("llava", {"square": square}))
    assert tower.preprocess(RGB).seen[0, 0].tolist() == colour


FITS = {
    "stretch": lambda: fit.stretch(RGB, 84, BILINEAR),
    "letterbox": lambda: fit.resize_pad(RGB, 84, (0, 0, 0), BILINEAR),
}


@pytest.mark.parametrize("name", FITS)
def test_siglip_fits_a_picture_by_the_quirk(opened, name):
    tower = loaded(opened(SPECS["siglip"]), resolve("hf", {"fit": name}))
    found, (seen, affine) = tower.preprocess(RGB), FITS[name]()
    np.testing.assert_array_equal(found.seen, seen)
    assert found.affine == affine and found.source == (47, 31) and found.pixels.shape == (1, 3, 84, 84)


def test_the_place_of_a_picture(opened):
    clip, siglip = (loaded(opened(spec)) for spec in SPECS.values())
    assert clip.span(10, 2000) == Span((4, 4), (16,))
    assert siglip.span(10, 2000) == Span((3, 3), ("\n\n<start_of_image>", 9, "<end_of_image>\n\n"))
    plain = loaded(opened(SPECS["siglip"]), resolve("llava", {"image_newlines": "none"}))
    assert plain.span(5, 5) == Span((3, 3), ("<start_of_image>", 9, "<end_of_image>"))
    assert (clip.width, siglip.width) == (WIDTH, WIDTH)
    for tower in (clip, siglip):
        pixels = tower.preprocess(RGB).pixels
        assert encode(tower, pixels).shape == (tower.span(47, 31).n_rows, tower.width)


@pytest.mark.parametrize("n, m", [(1, 1), (4, 1), (6, 2), (6, 3), (9, 3), (8, 4), (5, 5)])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_row_is_the_average_of_its_square(backend, n, m):
    ops, x = get_ops(backend, "cpu", 1, 0), rand(n * n, 7)
    found = ops.numpy(pool(ops.array(x), n, m))
    want = []
    for top in range(0, n, m):
        for left in range(0, n, m):
            rows = [x[n * (top + dy) + left + dx] for dy in range(m) for dx in range(m)]
            want.append(np.sum(rows, 0, dtype=np.float64) / m**2)
    close(found, np.array(want), 1e-6)


def test_siglip_on_both_backends(opened):
    file = opened(SPECS["siglip"])
    one, other = loaded(file), loaded(file, backend="torch")
    pixels = one.preprocess(RGB).pixels
    close(encode(one, pixels), encode(other, pixels), 2e-6)
    assert one.stages() == other.stages() and len(one.stages()) == 5 + 3 * 13 + 4


def test_the_projection_is_stored_the_other_way_round(opened):
    """Rows are the normalised averages times the matrix as the file has it."""
    file = opened(SiglipSpec(eps=0.05))
    tower, found = loaded(file), {}

    def tap(name, x):
        found[name] = x
        return x

    rows = tower.encode(tower.preprocess(RGB).pixels, tap)
    pooled = found["pool"].astype(np.float64)
    normed = pooled / np.sqrt(np.square(pooled).mean(-1, keepdims=True) + 0.05) * tower.weights.soft_emb_norm
    close(found["soft_emb_norm"], normed, 1e-6)
    stored = np.frombuffer(file.tensors["mm.input_projection.weight"].data, np.float16).reshape(36, WIDTH)
    close(rows, found["soft_emb_norm"] @ stored.astype(np.float32), 1e-6)


def test_the_activation_is_the_file_s(opened):
    pixels = loaded(opened(SPECS["siglip"])).preprocess(RGB).pixels
    rows = [encode(loaded(opened(SiglipSpec(use_gelu=gelu))), pixels) for gelu in (True, False)]
    assert rel_rms(*rows) > 1e-3


REFUSED = [
    ({"clip.vision.projector.scale_factor": 4}, "clip.vision.projector.scale_factor"),  # of 6 patches a side
    ({"clip.vision.projector.scale_factor": 0}, "clip.vision.projector.scale_factor"),
    ({"clip.vision.feature_layer": [1]}, "clip.vision.feature_layer"),
    ({"clip.vision.image_size": 85}, "clip.vision.patch_size"),
    ({"clip.vision.spatial_merge_size": 2}, "clip.vision.spatial_merge_size"),
]


@pytest.mark.parametrize("keys, field", REFUSED, ids=str)
def test_siglip_refuses_by_name(opened, keys, field):
    with pytest.raises(GGUFError) as caught:
        loaded(opened(SPECS["siglip"], keys))
    assert caught.value.field == field


def test_siglip_merges_four_by_four_without_a_key(opened):
    file = opened(SiglipSpec(merge=4, image_size=112))
    assert file.integer("clip.vision.projector.scale_factor", 0, 9, 0) == 0, "the key is not there"
    assert loaded(file).span(1, 1).n_rows == 4


@pytest.mark.parametrize("name", ["v.post_ln.weight", "mm.soft_emb_norm.weight", "mm.input_projection.weight"])
def test_a_tensor_that_siglip_needs(opened, name):
    with pytest.raises(GGUFError, match=f"{name}: missing tensor"):
        loaded(opened(SPECS["siglip"], tensors={name: None}))


def test_a_tensor_that_siglip_has_no_use_for(opened):
    with pytest.raises(GGUFError, match="v.class_embd: this model has no use for the tensor"):
        loaded(opened(SPECS["siglip"], tensors={"v.class_embd": held(rand(36))}))


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_file_means_needs_no_tensors(tmp_path, profile):
    for name, metadata, rows in (("clip", vision_metadata, 16), ("siglip", siglip_metadata, 9)):
        spec = SPECS[name]
        write(tmp_path / f"{name}.gguf", metadata(spec, WIDTH), {})
        file = gguf.read(tmp_path / f"{name}.gguf")
        about = tower_family(file).about(file, PROFILES[profile])
        assert about["tokens_per_image"] == rows
        assert about["width"] == spec.width and about["blocks_stored"] == spec.n_block
