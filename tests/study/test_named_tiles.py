"""Every command and study on a picture of several stretches: SmolVLM's tiles, with their names between them."""

import json

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.cli import main
from llava_ref.conformance.pairs.idefics3 import Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.pairs import TextSpec
from llava_ref.generation.sampling import Sampling
from llava_ref.study.ablation import ablation
from llava_ref.study.attention import attention_to_picture, picture_positions
from llava_ref.tracing.distance import log_softmax

RGB = np.random.default_rng(0).integers(0, 256, (30, 110, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (30, 110, 3), np.uint8)
SIDE, LONGEST = 28, 56


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    vision = Idefics3Spec(image_size=SIDE, patch_size=7, longest=LONGEST)
    return build_idefics3(tmp_path_factory.mktemp("named"), TextSpec(), vision)


@pytest.fixture(scope="module")
def model(pair):
    return llava_ref.load(pair.text, pair.mmproj, backend="numpy")


def test_rows_stand_in_three_stretches(model):
    request = model.raw_request("what <image>", [RGB])
    assert model.span(110, 30).n_rows == 3 * 4 and [-1] * 5 not in [request.token_ids[i : i + 5] for i in range(40)]
    described = [chunk for chunk in request.describe() if chunk["type"] == "image"]
    assert [(c["image"], c["first"], c["n_tokens"]) for c in described] == [(0, 0, 4), (0, 4, 4), (0, 8, 4)]


def test_attention_finds_every_row(model):
    """The weights are those at the rows' own positions, wherever text stands between them."""
    request = model.raw_request("what <image> is <image>", [RGB, OTHER])
    answer = model.answer(request, Sampling(), max_tokens=3).finish().token_ids
    found, at = attention_to_picture(model, request, answer, image=1), picture_positions(request, 1)
    with model.trace("*.kq_soft_max") as trace:
        model.forward([*model.parts(request), list(answer[:-1])])
    first = len(request.token_ids) - 1
    for layer, weights in enumerate(found):
        whole = trace[f"blk.{layer}.kq_soft_max"].mean(0)[first : first + len(answer)]
        np.testing.assert_allclose(weights, whole[:, at], atol=1e-7)
    assert found.shape[-1] == 12 and np.diff(at).max() > 1


def test_covering_a_picture_changes_every_tile_of_it(model):
    """All of the second picture is painted over: the scores are those of a plain picture in its place."""
    plain = np.empty_like(OTHER)
    plain[:] = np.median(OTHER.reshape(-1, 3), 0)
    requests = [model.raw_request("<image> what <image>", [RGB, picture]) for picture in (OTHER, plain)]
    sharp, covered = (log_softmax(model.forward([*model.parts(r), [20]])[-2:]) for r in requests)
    lost = ablation(model, requests[0], [20, 30], image=1, cells=1, window=1)
    np.testing.assert_allclose(lost[:, 0, 0], (sharp - covered)[[0, 1], [20, 30]], atol=1e-5)


def test_kept_work_changes_nothing(pair, model):
    keeping = llava_ref.load(pair.text, pair.mmproj, backend="numpy")
    keeping.reuse = llava_ref.generation.reuse.Reuse()
    request = model.raw_request("what <image> is", [RGB])
    plain = model.answer(request, Sampling(), max_tokens=4).finish()
    for cached in (0, 1):
        again = keeping.answer(keeping.raw_request("what <image> is", [RGB]), Sampling(), max_tokens=4).finish()
        assert again.token_ids == plain.token_ids
        assert (again.usage["prompt_tokens_details"]["cached_tokens"] > 12) == bool(cached)


@pytest.mark.parametrize("profile", ["hf", "llama.cpp"])
def test_every_command_takes_a_named_tile(pair, tmp_path, monkeypatch, capsys, profile):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save("p.png")
    Image.fromarray(OTHER).save("q.png")
    files = ["-m", str(pair.text), "--mmproj", str(pair.mmproj)]
    asked = [*files, "--image", "p.png", "-p", "what is the", "--profile", profile]

    def json_of(*arguments):
        capsys.readouterr()
        assert main([*arguments]) == 0
        return json.loads(capsys.readouterr().out)

    found = json_of("generate", *asked, "-n", "2", "--temp", "0", "--json")
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == 12
    assert "<image>what is the<end_of_utterance>" in found["prompt"]
    found = json_of("attend", *asked, "-n", "2", "-o", "a.html", "--cells", "2", "--json")
    assert np.shape(found["attention"])[-2:] == (4, 4)
    assert main(["lens", *asked, "-n", "2", "-o", "l.html"]) == 0
    assert main(["trace", *asked, "-o", "t.safetensors"]) == 0
    assert main(["logits", *asked, "-o", "x.safetensors"]) == 0
    if profile == "hf":  # in the other both answers begin alike, which is refused
        found = json_of("patch", *asked, "--from-image", "q.png", "-o", "c.html", "--cells", "2", "--json")
        assert np.shape(found["picture"])[1:] == (2, 2)
    found = json_of("encode", "--mmproj", str(pair.mmproj), "--image", "p.png", "-o", "e.safetensors", "--json")
    assert found["tensors"] == {"pixels": [3, 3, SIDE, SIDE], "image_embeddings": [12, 48]}
    assert main(["check", *files]) == 0
    found = json_of("inspect", str(pair.mmproj), "--profile", profile, "--json")["image_pipeline"]
    assert (found["tokens_least"], found["tokens_per_image"], found["longest_edge_pixels"]) == (12, 20, LONGEST)
    assert main(["inspect", str(pair.mmproj)]) == 0
    assert "cut from pictures whose longer side has 56 pixels" in capsys.readouterr().out
    against = ["--against-model", str(pair.text), "--against-mmproj", str(pair.mmproj)]
    assert json_of("quality", *asked, *against, "-n", "2", "--rank", "layers", "--json")
