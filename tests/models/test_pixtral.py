"""Pixtral and Mistral Small 3.1: what is refused, what a picture takes; backends and the server change nothing."""

import base64
import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from llava_ref import gguf, load
from llava_ref.cli import main
from llava_ref.conformance.pairs.pairs import TextSpec
from llava_ref.conformance.pairs.pixtral import PixtralSpec, build_pixtral, pixtral_metadata, pixtral_tensors
from llava_ref.conformance.pairs.random_weights import Random
from llava_ref.conformance.pairs.writing import held, write
from llava_ref.errors import GGUFError, PairError, ParameterError
from llava_ref.models import tower_family
from llava_ref.models.patch_grid import angles
from llava_ref.models.pixtral import Pixtral, channels_first
from llava_ref.profiles import PROFILES
from llava_ref.tools.check import check

from ..support.helpers import close

TEXT, VISION = TextSpec(), PixtralSpec(image_size=96)
SMALL = replace(VISION, merge=2, patch_size=14, image_size=112)
BOTH = {"pixtral": VISION, "mistral small": SMALL}
PROMPT = "what color<image>\nis red<image>?"


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


PICTURES = [picture(96, 40), picture(30, 130, 1)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return {name: build_pixtral(tmp_path_factory.mktemp("pair"), TEXT, vision) for name, vision in BOTH.items()}


@pytest.fixture
def opened(tmp_path):
    """Write an mmproj file with these keys changed (None: left out), and these tensors."""

    def write_and_read(metadata, tensors=None):
        path = tmp_path / "mmproj.gguf"
        kept = {key: value for key, value in metadata.items() if value is not None}
        write(path, kept, tensors or {})
        return gguf.read(path)

    return write_and_read


def test_the_projector_names_the_family(pairs):
    for pair in pairs.values():
        assert tower_family(gguf.read(pair.mmproj)) is Pixtral


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"clip.vision.spatial_merge_size": 0}, "clip.vision.spatial_merge_size: 0 is out of range, expected 1..16"),
        ({"clip.vision.image_size": None}, "clip.vision.image_size: missing"),
        ({"clip.vision.image_size": 4096}, "clip.vision.image_size: 4096 is more than 128 squares of 16 pixels"),
        ({"clip.vision.attention.head_count": 8}, "clip.vision.attention.head_count: 48 / 8 is no multiple of 4"),
        ({"clip.vision.patch_size": 520}, "clip.vision.patch_size: 520 x 1 is more than 512 pixels"),
        ({"clip.vision.feature_layer": [2]}, "clip.vision.feature_layer: 2, expected no such key"),
        ({"clip.rope.freq_base": 1e6}, r"clip.rope.freq_base: 1e\+06 is not supported, expected 10000 or no such key"),
        ({"clip.vision.n_wa_pattern": 2}, "clip.vision.n_wa_pattern: 2 is not supported"),
    ],
)
def test_a_key_that_makes_no_tower_is_named(opened, changes, says):
    with pytest.raises(GGUFError, match=says):
        Pixtral.about(opened({**pixtral_metadata(VISION, TEXT.width), **changes}), PROFILES["hf"])


def test_the_base_that_everyone_has_may_be_said(opened):
    file = opened({**pixtral_metadata(VISION, TEXT.width), "clip.rope.freq_base": 10000.0})
    assert Pixtral.about(file, PROFILES["hf"])["square_pixels"] == 16


@pytest.mark.parametrize(
    "vision, drop, add, says",
    [
        (VISION, "v.token_embd.img_break", None, "v.token_embd.img_break: missing tensor"),
        (VISION, "v.pre_ln.weight", None, "v.pre_ln.weight: missing tensor"),
        (SMALL, "mm.patch_merger.weight", None, "mm.patch_merger.weight: missing tensor"),
        (SMALL, "mm.input_norm.weight", None, "mm.input_norm.weight: missing tensor"),
        (VISION, None, "mm.input_norm.weight", "mm.input_norm.weight: this model has no use for the tensor"),
        (VISION, None, "v.post_ln.weight", "v.post_ln.weight: this model has no use for the tensor"),
    ],
)
def test_a_tensor_that_is_missing_or_too_many_is_named(opened, vision, drop, add, says):
    tensors = pixtral_tensors(vision, TEXT.width, Random(0, 1.0))
    tensors["v.token_embd.img_break"] = held(np.zeros(TEXT.width, np.float32))
    tensors.pop(drop, None)
    if add:
        tensors[add] = held(np.ones(vision.width, np.float32))
    file = opened(pixtral_metadata(vision, TEXT.width), tensors)
    with pytest.raises(GGUFError, match=says):
        load(None, file.path, backend="numpy")


def test_a_width_that_the_file_does_not_have_is_named(opened):
    tensors = pixtral_tensors(VISION, TEXT.width, Random(0, 1.0))
    file = opened(pixtral_metadata(replace(VISION, mlp_width=72), TEXT.width), tensors)
    with pytest.raises(GGUFError, match="v.blk.0.ffn_up.weight: has 68 rows, expected 72"):
        load(None, file.path, backend="numpy")


def test_a_vocabulary_without_the_tokens_beside_a_picture_is_refused(pairs, tmp_path):
    text = tmp_path / "text.gguf"
    text.write_bytes(pairs["pixtral"].text.read_bytes().replace(b"[IMG_END]", b"[img_end]"))
    with pytest.raises(PairError, match=r"has no token \[IMG_END\]"):
        load(text, pairs["pixtral"].mmproj)


def test_a_thin_picture_that_would_vanish_is_refused(pairs):
    model = load(pairs["pixtral"].text, pairs["pixtral"].mmproj, profile="hf")
    assert model.span(96, 1).n_rows == 6
    with pytest.raises(ParameterError, match="1 x 97: one side vanishes when the other has 96 pixels"):
        model.span(1, 97)
    assert load(pairs["pixtral"].text, pairs["pixtral"].mmproj, profile="llama.cpp").span(1, 97).n_rows > 8


@pytest.mark.parametrize("name", BOTH)
def test_lines_end_by_tokens_or_by_rows(pairs, name):
    """The same rows at the same places: a row of the mmproj is that of the token in the text's table."""
    pair = pairs[name]
    tokens, rows = (
        load(pair.text, pair.mmproj, profile="hf", quirks={"line_breaks": value}) for value in ("tokens", "rows")
    )
    lines, across = tokens.span(30, 60).grid
    assert tokens.span(30, 60).n_rows == lines * across
    assert rows.span(30, 60).n_rows == lines * (across + 1) - 1
    ids = [model.raw_request(PROMPT, PICTURES).token_ids for model in (tokens, rows)]
    broken = tokens.tokenizer.encode("[IMG_BREAK]")[0]
    assert [-1 if token == broken else token for token in ids[0]] == list(ids[1]) and broken in ids[0]
    close(tokens.logits(PROMPT, PICTURES), rows.logits(PROMPT, PICTURES), 1e-6)


@pytest.mark.parametrize("profile", ["hf", "llama.cpp"])
def test_places_of_a_picture_s_rows(pairs, profile):
    model = load(pairs["pixtral"].text, pairs["pixtral"].mmproj, profile=profile)
    tile = model.preprocess(model.decode_image(picture(64, 48))).tiles[0]
    step = 4 if profile == "hf" else 5
    np.testing.assert_array_equal(tile.rows, np.arange(3)[:, None] * step + np.arange(4))
    assert tile.seen.shape == (48, 64, 3)


def test_squares_keep_the_numbers_of_a_channel_together():
    x = np.arange(4 * 6 * 3, dtype=np.float32).reshape(24, 3)
    squares = channels_first(x, (4, 6), 2)
    assert squares.shape == (6, 12)
    for row in range(6):
        y, x_ = row // 3 * 2, row % 3 * 2
        patches = [(y + dy) * 6 + x_ + dx for dy in range(2) for dx in range(2)]
        np.testing.assert_array_equal(squares[row].reshape(3, 4), x[patches].T)


def test_half_of_a_head_turns_by_the_row_and_half_by_the_column():
    """Of the angles 10000^(-2j / d) rows have the even j and columns the odd ones."""
    turned = angles(np.array([[0, 0], [3, 0], [0, 5]]), 16, apart=0.5)
    even, odd = (10000.0 ** (-2.0 * np.arange(first, 8, 2) / 16) for first in (0, 1))
    np.testing.assert_allclose(turned, [[0.0] * 8, [*3 * even, *[0.0] * 4], [*[0.0] * 4, *5 * odd]], rtol=1e-12)


@pytest.mark.parametrize("name", BOTH)
def test_backends_agree(pairs, name):
    pair = pairs[name]
    found = [load(pair.text, pair.mmproj, backend=b, profile="hf").logits(PROMPT, PICTURES) for b in ("torch", "numpy")]
    close(*found, 2e-5)


@pytest.mark.parametrize("name", BOTH)
def test_a_fused_step_on_the_cpu_gives_the_same_tokens(pairs, name):
    pytest.importorskip("llvmlite")
    pair = pairs[name]
    exact, fast = (load(pair.text, pair.mmproj, profile="hf", precision=p, threads=1) for p in ("exact", "fast"))
    request = exact.raw_request(PROMPT, PICTURES)
    close(exact.request_logits(request), fast.request_logits(request), 2e-2)


def loaded(profile, text, mmproj, n_context=None):
    return load(text, mmproj, profile=profile, n_context=n_context)


@pytest.mark.parametrize("profile", ["hf", "llama.cpp"])
def test_the_server_answers_about_pictures(pairs, profile):
    """Requests as documents of vision interfaces have them: text before a data URI, whole and as a stream."""
    running = pytest.importorskip("tests.api.running")
    data = io.BytesIO()
    Image.fromarray(picture(64, 48)).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    content = [{"type": "text", "text": "what color"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "pixtral-12b", "messages": [{"role": "user", "content": content}], "max_tokens": 3}
    pair = pairs["pixtral"]
    with running.serving(pair=(pair.text, pair.mmproj), load=partial(loaded, profile)) as server:
        reply = server.post("/v1/chat/completions", body).json()
        stream = server.post("/v1/chat/completions", body | {"stream": True}).text
        asked = [*body["messages"], {"role": "assistant", "content": "red"}]
        looked = server.post("/v1/look", {"messages": asked}).json()
    assert reply["usage"]["completion_tokens"] == 3
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == (12 if profile == "hf" else 14)
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]
    assert "".join(deltas) == reply["choices"][0]["message"]["content"]
    assert looked["size"] == [64, 48] and looked["grid"] == [3, 4]  # breaks are not among the squares
    assert np.shape(looked["attention"])[1:] == (3, 4)


@pytest.mark.parametrize("context, says", [(36, "the largest leave no room"), (2, "there is no room")])
def test_check_says_which_pictures_fit(tmp_path, context, says):
    pair = build_pixtral(tmp_path, replace(TEXT, context=context), VISION)
    found = next(row for row in check(gguf.read(pair.text), gguf.read(pair.mmproj)) if row.what == "positions")
    assert found.ok is (None if context == 36 else False) and says in found.says


@pytest.mark.parametrize("profile, most", [("hf", 42), ("llama.cpp", 2048)])
def test_inspect_says_how_large_a_picture_becomes(pairs, capsys, profile, most):
    assert main(["inspect", str(pairs["pixtral"].mmproj), "--profile", profile]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "picture of any size, in squares of 16 pixels a side" in shown
    assert f"to {most} in the prompt for a picture" in shown and "ends each line of a picture" in shown


def test_random_pictures_have_as_many_rows_as_their_span_says(pairs):
    for name, pair in pairs.items():
        for profile in ("hf", "llama.cpp"):
            model = load(pair.text, pair.mmproj, backend="numpy", profile=profile)
            for width, height in ((1, 1), (200, 3), (61, 60), (33, 97)):
                assert len(model.encode_image(picture(width, height))) == model.span(width, height).n_rows, name


def test_rows_of_a_picture_do_not_depend_on_another(pairs):
    model = load(pairs["pixtral"].text, pairs["pixtral"].mmproj, backend="numpy", profile="hf")
    alone = model.encode_image(PICTURES[1])
    with model.trace("projector.out") as trace:
        model.logits(PROMPT, PICTURES)
    np.testing.assert_array_equal(trace["projector.out#1"], alone)
