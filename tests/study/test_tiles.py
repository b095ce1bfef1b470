"""The studies of a picture of several tiles: what a row stands for, back through tiles and padding to source pixels."""

import json

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.cli import main
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.study.ablation import rows_under, under, window_of_patches
from llava_ref.study.overlay import over_tiles, over_whole, pixels

SIZES = ((28, 56), (56, 28), (56, 56))
RGB = np.random.default_rng(0).integers(
    0, 256, (30, 120, 3), np.uint8
)  # wide: the tiles' upper and lower parts are padding


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tiles"), TextSpec(), VisionSpec(image_size=28, patch_size=7, sizes=SIZES))


@pytest.fixture(params=["hf", "llama.cpp"])
def picture(request, pair):
    model = llava_ref.load(pair.text, pair.mmproj, backend="numpy", profile=request.param)
    return model, model.preprocess(model.decode_image(RGB))


def test_each_row_of_a_patch_is_that_of_one_square(picture):
    model, found = picture
    rows = np.concatenate([tile.rows.ravel() for tile in found.tiles])
    shown, n_rows = rows[rows >= 0], model.span(120, 30).n_rows
    assert len(set(shown)) == len(shown) and set(shown) <= set(range(n_rows)) and len(found.tiles) == 3
    newlines = n_rows - len(shown)
    assert (newlines > 0) == (model.quirks.tiles == "joined")


@pytest.mark.parametrize("spot", [(4, 22), (4, 97), (26, 52), (26, 68)])
def test_what_a_row_stands_for_changes_with_the_pixels_there(picture, spot):
    """A few pixels are changed; of each tile that shows them the square that changes most is that of a row found."""
    model, before = picture
    changed = RGB.copy()
    changed[max(0, spot[0] - 1) : spot[0] + 2, max(0, spot[1] - 1) : spot[1] + 2] ^= 255
    after = model.preprocess(model.decode_image(changed))
    n_rows = model.span(120, 30).n_rows
    at = over_tiles(np.eye(n_rows), before, np.array([spot[1] + 0.5]), np.array([spot[0] + 0.5]))[:, 0, 0]
    most = []
    for one, other in zip(before.tiles, after.tiles, strict=True):
        moved = np.abs(one.seen.astype(int) - other.seen).sum(-1).reshape(4, 7, 4, 7).sum((1, 3))
        if moved.any():
            most.append(int(one.rows[np.unravel_index(moved.argmax(), moved.shape)]))
    assert len(most) == 2 and sorted(most) == np.flatnonzero(at == 1).tolist()


def test_a_point_has_the_sum_of_its_tiles(picture):
    model, found = picture
    ones = np.ones(model.span(120, 30).n_rows)
    values = over_tiles(ones, found, *pixels(found))
    assert values.shape == (30, 120) and set(np.unique(values)) <= {1.0, 2.0} and (values == 2).mean() > 0.9
    assert over_whole(ones[None], found).shape == (1, 8, 8)


def test_the_parts_of_a_picture_cover_its_tiles(picture):
    """The cells around each make up all rows of patches, each once; the same part is covered in every tile."""
    _, found = picture
    masks = [window_of_patches((4, 4), 2, (y, x), 1) for y, x in np.ndindex(2, 2)]
    rows = sorted(row for mask in masks for row in rows_under(mask, found))
    shown = np.concatenate([tile.rows.ravel() for tile in found.tiles])
    assert len(set(rows)) == len(rows) and set(rows) <= set(shown[shown >= 0]) and len(rows) >= 16
    left = window_of_patches((4, 4), 2, (0, 0), 1) | window_of_patches((4, 4), 2, (1, 0), 1)
    whole = [under(left, found, tile, 28, 28).mean() for tile in found.tiles]
    assert sorted(round(float(share), 1) for share in whole)[-1] >= 0.5 and min(whole) == 0


@pytest.mark.parametrize("profile", ["hf", "llama.cpp"])
def test_every_command_takes_a_tiled_picture(pair, tmp_path, monkeypatch, capsys, profile):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save("p.png")
    Image.fromarray(RGB[:, ::-1]).save("q.png")
    files = ["-m", str(pair.text), "--mmproj", str(pair.mmproj)]
    asked = [*files, "--image", "p.png", "-p", "what is the", "--profile", profile]
    rows = llava_ref.load(None, pair.mmproj, backend="numpy", profile=profile).span(120, 30).n_rows

    def json_of(*arguments):
        capsys.readouterr()
        assert main([*arguments]) == 0
        return json.loads(capsys.readouterr().out)

    found = json_of("generate", *asked, "-n", "2", "--temp", "0", "--json")
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == rows
    found = json_of("attend", *asked, "-n", "2", "-o", "a.html", "--cells", "2", "--json")
    assert np.shape(found["attention"])[-2:] == (8, 8)
    assert main(["attend", *asked, "-n", "2", "-o", "a.png", "--cells", "1"]) == 0
    assert main(["lens", *asked, "-n", "2", "-o", "l.html"]) == 0
    assert main(["trace", *asked, "-o", "t.safetensors"]) == 0
    out = ["-o", "e.safetensors", "--save-seen", "seen.png", "--json", "--profile", profile]
    found = json_of("encode", "--mmproj", str(pair.mmproj), "--image", "p.png", *out)
    assert found["tensors"] == {"pixels": [3, 3, 28, 28], "image_embeddings": [rows, 48]} and len(found["tiles"]) == 3
    with Image.open("seen.png") as seen:
        assert seen.size == (84, 28)
    assert main(["check", *files]) == 0
    found = json_of("inspect", str(pair.mmproj), "--profile", profile, "--json")["image_pipeline"]
    assert found["tile_sizes"] == [list(size) for size in SIZES] and found["tokens_least"] <= rows
    assert main(["inspect", str(pair.mmproj)]) == 0
