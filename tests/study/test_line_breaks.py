"""Every command and study on a picture with breaks between its lines, as tokens and as rows of the picture."""

import json

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.cli import main
from llava_ref.conformance.pairs.pairs import TextSpec
from llava_ref.conformance.pairs.pixtral import PixtralSpec, build_pixtral
from llava_ref.generation.sampling import Sampling
from llava_ref.study.ablation import ablation
from llava_ref.study.attention import attention_to_picture, picture_positions

RGB = np.random.default_rng(0).integers(0, 256, (32, 80, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (48, 40, 3), np.uint8)
LINES, ACROSS = 2, 5
BOTH = ("tokens", "rows")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build_pixtral(tmp_path_factory.mktemp("broken"), TextSpec(), PixtralSpec())


@pytest.fixture(scope="module")
def models(pair):
    return {
        value: llava_ref.load(pair.text, pair.mmproj, backend="numpy", profile="hf", quirks={"line_breaks": value})
        for value in BOTH
    }


def test_rows_stand_in_as_many_stretches_as_lines(models):
    described = [
        [(c["image"], c["first"], c["n_tokens"]) for c in model.raw_request("<image>", [RGB]).describe()
         if c["type"] == "image" and "first" in c]
        for model in models.values()
    ]  # fmt: skip
    assert described == [[(0, 0, ACROSS), (0, ACROSS, ACROSS)], []]
    assert [model.span(80, 32).n_rows for model in models.values()] == [LINES * ACROSS, LINES * ACROSS + LINES - 1]


def test_attention_is_the_same_whichever_the_breaks_are(models):
    """At the rows of squares; where a break is a row, it has a weight of its own."""
    found = []
    for model in models.values():
        request = model.raw_request("what <image> is <image>", [OTHER, RGB])
        answer = model.answer(request, Sampling(), max_tokens=3).finish().token_ids
        rows = model.preprocess(model.decode_image(RGB)).tiles[0].rows
        assert rows.shape == (LINES, ACROSS)
        at = np.array(picture_positions(request, 1))[rows]
        found.append((answer, at, attention_to_picture(model, request, answer, image=1)[..., rows]))
    (answer, at, tokens), (same, again, rows) = found
    assert answer == same and (at == again).all()
    np.testing.assert_allclose(tokens, rows, atol=1e-6)


def test_covering_a_part_is_the_same_whichever_the_breaks_are(models):
    lost = []
    for model in models.values():
        request = model.raw_request("<image> what <image>", [OTHER, RGB])
        lost.append(ablation(model, request, [20, 30], image=1, cells=2, window=1))
    np.testing.assert_allclose(*lost, atol=1e-5)
    assert np.abs(lost[0]).max() > 1e-3


@pytest.mark.parametrize("breaks", BOTH)
def test_kept_work_changes_nothing(pair, models, breaks):
    keeping = llava_ref.load(
        pair.text, pair.mmproj, backend="numpy", profile="hf", quirks={"line_breaks": breaks}
    )  # fmt: skip
    keeping.reuse = llava_ref.generation.reuse.Reuse()
    plain = models[breaks].answer(models[breaks].raw_request("what <image> is", [RGB]), Sampling(), max_tokens=4)
    want = plain.finish().token_ids
    for cached in (0, 1):
        again = keeping.answer(keeping.raw_request("what <image> is", [RGB]), Sampling(), max_tokens=4).finish()
        assert again.token_ids == want
        assert (again.usage["prompt_tokens_details"]["cached_tokens"] > 8) == bool(cached)


@pytest.mark.parametrize("profile", ["hf", "llama.cpp"])
def test_every_command_takes_a_picture_with_breaks(pair, tmp_path, monkeypatch, capsys, profile):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save("p.png")
    Image.fromarray(255 - RGB).save("q.png")
    files = ["-m", str(pair.text), "--mmproj", str(pair.mmproj)]
    asked = [*files, "--image", "p.png", "-p", "what is the", "--profile", profile]
    n_rows = LINES * ACROSS + (profile == "llama.cpp") * (LINES - 1)

    def json_of(*arguments):
        capsys.readouterr()
        assert main([*arguments]) == 0
        return json.loads(capsys.readouterr().out)

    found = json_of("generate", *asked, "-n", "2", "--temp", "0", "--json")
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == n_rows
    assert "[INST]<image>what is the[/INST]" in found["prompt"]
    found = json_of("attend", *asked, "-n", "2", "-o", "a.html", "--cells", "2", "--json")
    assert np.shape(found["attention"])[-2:] == (LINES, ACROSS)
    assert main(["lens", *asked, "-n", "2", "-o", "l.html"]) == 0
    assert main(["trace", *asked, "-o", "t.safetensors"]) == 0
    assert main(["logits", *asked, "-o", "x.safetensors"]) == 0
    arguments = ["encode", "--mmproj", str(pair.mmproj), "--image", "p.png", "--profile", profile, "--json"]
    found = json_of(*arguments, "-o", "e.safetensors")
    assert found["tensors"] == {"pixels": [1, 3, 32, 80], "image_embeddings": [n_rows, 48]}
    assert main(["check", *files]) == 0
    found = json_of("inspect", str(pair.mmproj), "--profile", profile, "--json")["image_pipeline"]
    wanted = (2, 56) if profile == "hf" else (9, 2048)
    assert (found["tokens_least"], found["tokens_per_image"], found["square_pixels"]) == (*wanted, 16)
    against = ["--against-model", str(pair.text), "--against-mmproj", str(pair.mmproj)]
    assert json_of("quality", *asked, *against, "-n", "2", "--rank", "layers", "--json")
