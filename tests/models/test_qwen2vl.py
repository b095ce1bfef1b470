"""Qwen2-VL and Qwen2.5-VL: what is refused, what a picture takes; units, steps and the server change nothing."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from llava_ref import gguf, load
from llava_ref.cli import main
from llava_ref.conformance.pairs.qwen2vl import (
    QwenTextSpec,
    QwenVisionSpec,
    build_qwen2vl,
    qwen_text_metadata,
    qwen_vision_metadata,
    qwen_vision_tensors,
)  # fmt: skip
from llava_ref.conformance.pairs.random_weights import Random
from llava_ref.conformance.pairs.writing import write
from llava_ref.errors import GGUFError, ParameterError, PromptError
from llava_ref.generation.sampling import Sampling
from llava_ref.generation.session import Session
from llava_ref.generation.steps import SharedSteps
from llava_ref.generation.units import PictureRows
from llava_ref.models import qwen2, qwen2vl, text_family, tower_family
from llava_ref.models.patch_grid import PatchGrid
from llava_ref.profiles import PROFILES
from llava_ref.tools.check import check

from ..support.helpers import close, rand

TEXT, VISION = QwenTextSpec(), QwenVisionSpec()
BOTH = {"qwen2": replace(VISION, gated=False), "qwen2.5": VISION}
PROMPT = "what color<image>\nis red<image>?"


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


PICTURES = [picture(170, 90), picture(60, 130, 1)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return {name: build_qwen2vl(tmp_path_factory.mktemp("pair"), TEXT, vision) for name, vision in BOTH.items()}


@pytest.fixture(scope="module", params=BOTH)
def model(request, pairs):
    return load(pairs[request.param].text, pairs[request.param].mmproj, backend="numpy", profile="hf")


@pytest.fixture
def opened(tmp_path):
    def make(metadata, changes):
        path = tmp_path / "file.gguf"
        write(path, {k: v for k, v in (metadata | changes).items() if v is not None}, {})
        return gguf.read(path)

    return make


def test_the_files_name_the_family(pairs):
    for pair in pairs.values():
        assert text_family(gguf.read(pair.text)) is qwen2.Qwen2VL
        assert tower_family(gguf.read(pair.mmproj)) is qwen2vl.QwenVision


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"qwen2vl.rope.dimension_sections": None}, "qwen2vl.rope.dimension_sections: missing"),
        ({"qwen2vl.rope.dimension_sections": [1, 2, 2, 0]}, r"\[1, 2, 2, 0\], expected three counts that add up to 6"),
        ({"qwen2vl.rope.dimension_sections": [1, 2, 2, 1]}, "expected three counts"),
        ({"qwen2vl.rope.dimension_sections": [3, 3]}, "expected three counts"),
        ({"qwen2vl.rope.dimension_sections": [-1, 4, 3, 0]}, "expected three counts"),
        ({"qwen2vl.attention.sliding_window": 16}, "qwen2vl.attention.sliding_window: 16 is not supported"),
    ],
)
def test_a_decoder_that_is_refused(opened, changes, problem):
    with pytest.raises(GGUFError, match=problem):
        qwen2.Qwen2VL.about(opened(qwen_text_metadata(TEXT), changes), PROFILES["hf"])


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"clip.vision.n_wa_pattern": None}, "clip.vision.n_wa_pattern: missing"),
        ({"clip.vision.n_wa_pattern": 0}, "clip.vision.n_wa_pattern: 0"),
        ({"clip.use_silu": None}, "clip.use_silu: not true"),
        ({"clip.vision.attention.head_count": 4}, "head_count: 40 / 4 is no multiple of 4"),
        ({"clip.vision.patch_size": 60}, "patch_size: 60, and a window has 112 pixels"),
        ({"clip.vision.patch_size": 257}, "patch_size: 257 x 2 is more than 512 pixels"),
    ],
)
def test_a_tower_that_is_refused(opened, changes, problem):
    with pytest.raises(GGUFError, match=problem):
        qwen2vl.QwenVision.about(opened(qwen_vision_metadata(VISION, TEXT.width), changes), PROFILES["hf"])


def test_matrices_that_cannot_be_told_apart_are_refused(tmp_path):
    pair = build_qwen2vl(tmp_path, TEXT, replace(VISION, mlp_width=VISION.width))
    with pytest.raises(GGUFError, match="v.blk.0.ffn_up.weight: is 40 x 40: ffn_up and ffn_down cannot be told"):
        load(pair.text, pair.mmproj)


def test_swapped_matrices_of_old_files_are_the_same_model(tmp_path):
    spec = BOTH["qwen2"]
    tensors, other = qwen_vision_tensors(spec, TEXT.width, Random(0, 1.0)), {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    swapped = {re.sub("ffn_up|ffn_down", lambda found: other[found[0]], name): x for name, x in tensors.items()}
    rows = []
    for name, written in (("new", tensors), ("old", swapped)):
        write(tmp_path / name, qwen_vision_metadata(spec, TEXT.width), written)
        rows.append(load(None, tmp_path / name, backend="numpy").encode_image(PICTURES[0]))
    assert swapped.keys() == tensors.keys() and swapped != tensors
    np.testing.assert_array_equal(*rows)


def test_a_picture_is_counted_before_it_is_decoded(model):
    """170 x 90 is 6 x 3 squares and 60 x 130 is 2 x 5 in profile hf: rows in the sequence, and fewer positions."""
    request = model.raw_request(PROMPT, PICTURES)
    assert [span.grid for span in request.spans] == [(3, 6), (5, 2)]
    assert request.token_ids.count(-1) == 18 + 10 and model.encode_image(PICTURES[0]).shape == (18, 48)
    session = model.session()
    session.feed(model.parts(request))
    assert session.n_past == len(request.token_ids) and session._position == session.n_past - (18 - 6) - (10 - 5)


def test_the_grid_of_windows():
    """Squares of a window of 4 x 4 stand together; what is left at the right and below is windows too."""
    grid = PatchGrid.of(10, 12, 4)  # 5 x 6 squares
    assert np.bincount(grid.window).tolist() == [64, 32, 16, 8] and (np.diff(grid.window) >= 0).all()
    assert grid.places[:5].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]
    assert sorted(map(tuple, grid.places)) == [(y, x) for y in range(10) for x in range(12)]
    assert (grid.places[::4] // 2 @ (6, 1) == grid.squares).all()


def test_units_change_little(model, monkeypatch):
    """Pictures are cut into units; each goes on at the first position of its picture."""
    parts = model.parts(model.raw_request(PROMPT, PICTURES))
    whole = model.session().feed(parts, all_logits=True)
    monkeypatch.setattr("llava_ref.generation.units.BATCH", 5)
    session = Session(model.text)
    close(session.feed(parts, all_logits=True), whole, 1e-5)
    assert [len(run.unit) for run in session._run_units if isinstance(run.unit, PictureRows)] == [5, 5, 5, 3, 5, 5]


def test_a_sequence_goes_on_after_it_was_rewound(model):
    parts = model.parts(model.raw_request(PROMPT, PICTURES))
    fresh, session = model.session().feed(parts), model.session()
    session.feed([*parts[:2], [7, 8, 9]])
    rest = session.rewind(parts)
    assert session.n_past == sum(map(len, parts[:2]))
    np.testing.assert_array_equal(session.feed(rest), fresh)


def test_rows_without_a_grid_are_refused(model):
    with pytest.raises(PromptError, match="image rows: an array; this model asks for `PictureRows`"):
        model.forward([[1], rand(6, 48)])


def test_where_rows_stand_matters(model):
    rows = rand(6, 48)
    wide, tall = (model.forward([[1], PictureRows(rows, grid), [2]]) for grid in ((2, 3), (3, 2)))
    assert np.abs(wide[-1] - tall[-1]).max() > 1e-3


def test_a_steep_picture_is_refused_as_transformers_does(pairs):
    for profile, refuses in (("hf", True), ("llama.cpp", False)):
        model = load(pairs["qwen2"].text, pairs["qwen2"].mmproj, profile=profile)
        if refuses:
            with pytest.raises(ParameterError, match="image: 603 x 3: one side is more than 200 times"):
                model.raw_request("<image>", [picture(603, 3)])
        else:
            assert model.raw_request("<image>", [picture(603, 3)]).spans[0].grid == (1, 22)


@pytest.mark.parametrize("name", BOTH)
def test_a_step_gives_the_bits_of_the_pass(pairs, name):
    """`fast` runs a token in one call, turned by its own position; watched, it runs operation by operation."""
    pytest.importorskip("llvmlite")
    model = load(pairs[name].text, pairs[name].mmproj, precision="fast", profile="hf", threads=1)
    request = model.raw_request(PROMPT, PICTURES)
    alone = model.answer(request, Sampling(), max_tokens=12).finish()
    with model.trace("result_output") as trace:
        watched = model.answer(request, Sampling(), max_tokens=12).finish()
    assert alone.token_ids == watched.token_ids and len(trace["result_output"]) >= 12
    exact = load(pairs[name].text, pairs[name].mmproj, profile="hf")
    close(exact.request_logits(request), model.request_logits(request), 2e-2)


def test_sequences_that_share_a_step_keep_their_own_positions(pairs):
    """Behind other pictures each is another distance behind its order; a shared step gives the bits of one alone."""
    pytest.importorskip("llvmlite")
    model = load(pairs["qwen2.5"].text, pairs["qwen2.5"].mmproj, precision="fast", profile="hf", threads=1)
    prompts = [
        model.parts(model.raw_request(prompt, PICTURES[: prompt.count("<image>")]))
        for prompt in (PROMPT, "<image> red", "what")
    ]

    def logits(steps):
        sessions = [Session(model.text, steps=steps) for _ in prompts]
        for session, parts in zip(sessions, prompts, strict=True):
            session.feed(parts)
        if steps is None:
            return [np.array(session.next([[7]])) for session in sessions]
        for session in sessions:
            session.start([[7]])
        return [np.array(session.advance()) for session in sessions]

    shared = SharedSteps(model.ops)
    for alone, together in zip(logits(None), logits(shared), strict=True):
        np.testing.assert_array_equal(alone, together)
    lags = [Session(model.text) for _ in prompts]
    assert [session.feed(parts) is not None and session.n_past - session._position
            for session, parts in zip(lags, prompts, strict=True)] == [17, 12, 0]  # fmt: skip


@pytest.mark.parametrize("name, known_as", [("qwen2.5", "qwen2.5vl:7b"), ("qwen2", "Qwen/QVQ-72B-Preview")])
def test_the_server_answers_about_pictures(pairs, name, known_as):
    """Requests as documents of vision interfaces have them: text before a data URI, whole and as a stream."""
    running = pytest.importorskip("tests.api.running")
    data = io.BytesIO()
    Image.fromarray(PICTURES[0]).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    content = [{"type": "text", "text": "what color is red"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": known_as, "messages": [{"role": "user", "content": content}], "max_tokens": 3}
    with running.serving(pair=(pairs[name].text, pairs[name].mmproj)) as server:
        reply = server.post("/v1/chat/completions", body).json()
        stream = server.post("/v1/chat/completions", body | {"stream": True}).text
    assert reply["usage"]["completion_tokens"] == 3
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == 18
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]
    assert "".join(deltas) == reply["choices"][0]["message"]["content"] and stream.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("context, says", [(4096, "the largest leave no room"), (4, "there is no room")])
def test_check_says_which_pictures_fit(tmp_path, context, says):
    pair = build_qwen2vl(tmp_path, replace(TEXT, context=context), VISION)
    found = next(row for row in check(gguf.read(pair.text), gguf.read(pair.mmproj)) if row.what == "positions")
    assert found.ok is (None if context == 4096 else False) and says in found.says


def test_inspect_says_that_pictures_have_any_size(pairs, capsys):
    """`image_size` is not used, so that it need not be whole patches either."""
    assert main(["inspect", str(pairs["qwen2.5"].mmproj)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "picture of any size, in squares of 28 pixels a side; the profile stretches" in shown
    assert "rounds a picture's sides in float64" in shown and "4 to 16384 in the prompt" in shown
