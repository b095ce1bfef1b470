"""InternVL's tower and tiles: what a file says and what is refused, the place of a picture, both backends."""

import numpy as np
import pytest

from llava_ref import gguf
from llava_ref.conformance.pairs.internvl import InternVLSpec, internvl_metadata, internvl_tensors
from llava_ref.conformance.pairs.random_weights import Random
from llava_ref.conformance.pairs.writing import held, write
from llava_ref.errors import GGUFError
from llava_ref.images import fit
from llava_ref.images.resample import BICUBIC
from llava_ref.models import dynamic_tiles, tower_family
from llava_ref.models.family import Span, encode
from llava_ref.models.internvl import InternVL
from llava_ref.ops import get_ops
from llava_ref.profiles import PROFILES

from ..support.helpers import close, rand

WIDTH, SPEC = 48, InternVLSpec()
RGB = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)


@pytest.fixture
def opened(tmp_path):
    """A tower's file with these keys and tensors changed; None takes one out."""

    def make(keys={}, tensors={}, spec=SPEC):  # noqa: B006
        metadata, weights = internvl_metadata(spec, WIDTH) | keys, internvl_tensors(spec, WIDTH, Random(0, 1.0))
        kept = {name: x for name, x in (weights | tensors).items() if x}
        write(tmp_path / "mmproj.gguf", {k: v for k, v in metadata.items() if v is not None}, kept)
        return gguf.read(tmp_path / "mmproj.gguf")

    return make


def loaded(file, profile="hf", backend="numpy"):
    return InternVL.load(file, get_ops(backend, "cpu", 1, 1 << 24), PROFILES[profile])


def test_the_projector_names_the_family(opened):
    assert tower_family(opened()) is InternVL


def test_the_place_of_a_picture_is_known_from_its_size(opened):
    hf, llama = (loaded(opened(), profile) for profile in ("hf", "llama.cpp"))
    assert hf.span(90, 40) == Span((2, 2), ("<img>", 3 * 4, "</img>"))  # two tiles, and the overview
    assert llama.span(90, 40) == Span((2, 2), ("<img>", 7 * 4, "</img>"))  # three by two
    assert hf.span(20, 28).n_rows == 7 * 4 and llama.span(20, 28).n_rows == 4
    for tower in (hf, llama):
        pixels = tower.preprocess(RGB).pixels
        assert encode(tower, pixels, (90, 40)).shape == (tower.span(90, 40).n_rows, WIDTH)


def test_tiles_are_cut_row_by_row_and_the_overview_is_last(opened):
    found = loaded(opened()).preprocess(RGB)
    whole, _ = fit.stretch(RGB, (56, 28), BICUBIC)
    overview, affine = fit.stretch(RGB, 28, BICUBIC)
    np.testing.assert_array_equal(found.seen, np.concatenate([whole, overview], 1))
    assert found.affine == affine and found.source == (90, 40)
    assert [tile.rows.tolist() for tile in found.tiles] == [[[i, i + 1], [i + 2, i + 3]] for i in (0, 4, 8)]


def test_of_equally_close_aspects_the_larger_is_taken_while_the_picture_fills_half_of_it(opened):
    """One tile, or four of 56 x 56 pixels: half of those are 1568, which 40 x 40 has and 39 x 39 has not."""
    tower = loaded(opened())
    assert tower.span(39, 39).n_rows == 4 and tower.span(40, 40).n_rows == 5 * 4


def test_the_grids_of_either_program():
    every = [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1)]
    assert dynamic_tiles._grids(1, 4) == every and dynamic_tiles._grids(2, 4) == every[1:]
    assert dynamic_tiles._grids_of_llama_cpp(1, 4) == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]
    assert dynamic_tiles._grids_of_llama_cpp(2, 6) == [(2, 2), (2, 3), (3, 2)]


def test_a_block_adds_what_layer_scale_lets_through(opened):
    """With a scale of 0 a block does nothing, whatever its attention and its MLP make."""
    zeros = {f"v.blk.{i}.ls{n}.weight": held(np.zeros(36, np.float32)) for i in range(3) for n in (1, 2)}
    tower, found = loaded(opened(tensors=zeros)), {}

    def tap(name, x):
        found[name] = x
        return x

    tower.encode(tower.preprocess(RGB).pixels[:1], tap)
    np.testing.assert_array_equal(found["features"], found["pos_embd"][1:])


def test_both_backends(opened):
    file = opened()
    one, other = loaded(file), loaded(file, backend="torch")
    pixels = one.preprocess(RGB).pixels
    close(encode(one, pixels), encode(other, pixels), 2e-6)
    assert one.stages() == other.stages() and len(one.stages()) == 5 + 3 * 13 + 6


REFUSED = [
    ({"clip.vision.projector.scale_factor": None}, "clip.vision.projector.scale_factor"),
    ({"clip.vision.projector.scale_factor": 3}, "clip.vision.projector.scale_factor"),  # of 4 patches a side
    ({"clip.vision.preproc_max_tiles": 0}, "clip.vision.preproc_max_tiles"),
    ({"clip.vision.preproc_max_tiles": 65}, "clip.vision.preproc_max_tiles"),
    ({"clip.vision.preproc_min_tiles": 7}, "clip.vision.preproc_min_tiles"),
    ({"clip.vision.feature_layer": [1]}, "clip.vision.feature_layer"),
    ({"clip.vision.image_size": 29}, "clip.vision.patch_size"),
    ({"clip.vision.preproc_image_size": 56}, "clip.vision.preproc_image_size"),
]


@pytest.mark.parametrize("keys, field", REFUSED, ids=str)
def test_a_key_is_refused_by_name(opened, keys, field):
    with pytest.raises(GGUFError) as caught:
        loaded(opened(keys))
    assert caught.value.field == field


def test_least_tiles_of_which_llama_cpp_makes_no_grid(opened):
    file = opened({"clip.vision.preproc_min_tiles": 3})
    assert loaded(file).span(28, 28).n_rows == 5 * 4
    with pytest.raises(GGUFError, match="preproc_min_tiles: 3, of which llama.cpp makes no grid of up to 6 tiles"):
        loaded(file, "llama.cpp")


@pytest.mark.parametrize(
    "name", ["v.class_embd", "v.blk.1.ls2.weight", "mm.model.mlp.0.weight", "mm.model.mlp.3.weight"]
)
def test_a_tensor_that_is_needed(opened, name):
    with pytest.raises(GGUFError, match=f"{name}: missing tensor"):
        loaded(opened(tensors={name: None}))


@pytest.mark.parametrize("name", ["v.post_ln.weight", "v.pre_ln.weight", "mm.model.mlp.2.weight"])
def test_a_tensor_that_nothing_uses(opened, name):
    with pytest.raises(GGUFError, match=f"{name}: this model has no use for the tensor"):
        loaded(opened(tensors={name: held(rand(36))}))


LARGE = InternVLSpec(large=True, biases=False)


def test_the_norms_of_the_large_tower_have_no_biases(opened):
    pixels = loaded(opened(spec=LARGE)).preprocess(RGB).pixels
    assert np.isfinite(encode(loaded(opened(spec=LARGE)), pixels, (90, 40))).all()
    for name in ("v.blk.1.ln1.bias", "v.blk.2.ln2.bias"):
        with pytest.raises(GGUFError, match=f"{name}: this model has no use for the tensor"):
            loaded(opened(tensors={name: held(rand(36))}, spec=LARGE))


@pytest.mark.parametrize("name", ["v.blk.2.attn_q_norm.weight", "v.blk.0.attn_k_norm.weight"])
def test_every_block_of_the_large_tower_norms_queries_and_keys(opened, name):
    with pytest.raises(GGUFError, match=f"{name}: missing tensor"):
        loaded(opened(tensors={name: None}, spec=LARGE))


@pytest.mark.parametrize("profile, least, most", [("hf", 4, 28), ("llama.cpp", 4, 28)])
def test_what_a_file_means_needs_no_tensors(tmp_path, profile, least, most):
    write(tmp_path / "mmproj.gguf", internvl_metadata(SPEC, WIDTH), {})
    about = InternVL.about(gguf.read(tmp_path / "mmproj.gguf"), PROFILES[profile])
    assert (about["tokens_least"], about["tokens_per_image"], about["merge"]) == (least, most, 2)
    assert about["tile_sizes"][0] == [28, 28] and len(about["tile_sizes"]) == 14


def test_without_keys_there_are_up_to_twelve_tiles(opened):
    file = opened({"clip.vision.preproc_min_tiles": None, "clip.vision.preproc_max_tiles": None})
    assert InternVL.about(file, PROFILES["hf"])["tokens_per_image"] == 13 * 4
