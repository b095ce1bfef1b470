"""Every command and study on InternVL's tiles: one picture in several tiles, whose rows stand together."""

import json

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.cli import main
from llava_ref.conformance.pairs.internvl import InternVLSpec, build_internvl
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec
from llava_ref.generation.sampling import Sampling
from llava_ref.study.ablation import ablation
from llava_ref.study.attention import attention_to_picture, picture_positions
from llava_ref.tracing.distance import log_softmax

RGB = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (40, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build_internvl(tmp_path_factory.mktemp("pair"), QwenTextSpec(sections=()), InternVLSpec(most_tiles=3))


@pytest.fixture(scope="module")
def model(pair):
    return llava_ref.load(pair.text, pair.mmproj, backend="numpy")


def test_attention_finds_the_rows_of_the_second_picture(model):
    request = model.raw_request("what <image> is <image>", [RGB, OTHER])
    answer = model.answer(request, Sampling(), max_tokens=2).finish().token_ids
    found, at = attention_to_picture(model, request, answer, image=1), picture_positions(request, 1)
    rows = np.flatnonzero(np.array(request.token_ids) == -1)
    np.testing.assert_array_equal(at, rows[12:])
    assert found.shape[-1] == 12 and (found > 0).all()


def test_covering_a_picture_changes_every_tile_of_it(model):
    """All of the second picture is painted over: the scores are those of a plain picture in its place."""
    plain = np.empty_like(OTHER)
    plain[:] = np.median(OTHER.reshape(-1, 3), 0)
    requests = [model.raw_request("<image> what <image>", [RGB, picture]) for picture in (OTHER, plain)]
    sharp, covered = (log_softmax(model.forward([*model.parts(r), [20]])[-2:]) for r in requests)
    lost = ablation(model, requests[0], [20, 30], image=1, cells=1, window=1)
    np.testing.assert_allclose(lost[:, 0, 0], (sharp - covered)[[0, 1], [20, 30]], atol=1e-5)


@pytest.mark.parametrize("profile, tiles", [("hf", 3), ("llama.cpp", 4)])
def test_every_command_takes_a_picture_in_tiles(pair, tmp_path, monkeypatch, capsys, profile, tiles):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save("p.png")
    Image.new("RGB", (90, 40), "red").save("q.png")
    files = ["-m", str(pair.text), "--mmproj", str(pair.mmproj)]
    asked = [*files, "--image", "p.png", "-p", "what is the", "--profile", profile]

    def json_of(*arguments):
        capsys.readouterr()
        assert main([*arguments]) == 0
        return json.loads(capsys.readouterr().out)

    found = json_of("generate", *asked, "-n", "2", "--temp", "0", "--json")
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == 4 * tiles
    assert found["prompt"].startswith("<|im_start|>user\n<image>")
    found = json_of("attend", *asked, "-n", "2", "-o", "a.html", "--cells", "2", "--json")
    assert np.shape(found["attention"])[-1] >= 2
    for command, out in (("lens", "l.html"), ("trace", "t.safetensors"), ("logits", "x.safetensors")):
        assert main([command, *asked, "-o", out]) == 0
    assert main(["patch", *asked, "--from-image", "q.png", "-o", "c.html", "--cells", "2"]) == 0
    found = json_of("encode", *asked[2:6], "-o", "e.safetensors", "--profile", profile, "--json")
    assert found["tensors"] == {"pixels": [tiles, 3, 28, 28], "image_embeddings": [4 * tiles, 48]}
    assert main(["check", *files]) == 0
    found = json_of("inspect", str(pair.mmproj), "--profile", profile, "--json")["image_pipeline"]
    assert (found["tokens_least"], found["tokens_per_image"]) == (4, 16) and len(found["tile_sizes"]) == 5
    against = ["--against-model", str(pair.text), "--against-mmproj", str(pair.mmproj)]
    assert json_of("quality", *asked, *against, "-n", "2", "--rank", "layers", "--json")
