"""Llama-3.2-Vision: what is refused, what a picture takes, what rows see; units, reuse, server change nothing."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from llava_ref import gguf, load
from llava_ref.cli import main
from llava_ref.conformance.pairs.mllama import (
    MllamaTextSpec,
    MllamaVisionSpec,
    build_mllama,
    mllama_text_metadata,
    mllama_text_tensors,
    mllama_vision_metadata,
)  # fmt: skip
from llava_ref.conformance.pairs.random_weights import Random
from llava_ref.conformance.pairs.writing import held, write
from llava_ref.errors import GGUFError, NumericsError, ParameterError, PromptError
from llava_ref.generation.grammar import JsonGrammars
from llava_ref.generation.reuse import Reuse
from llava_ref.generation.sampling import Sampling
from llava_ref.models import mllama, mllama_vision, text_family, tower_family
from llava_ref.models.looking import LookingCache, PictureStates
from llava_ref.models.tile_canvas import TileCanvas, TileLayout
from llava_ref.profiles import PROFILES
from llava_ref.study.attention import attention_to_picture
from llava_ref.tools.patch import patch

from ..support.helpers import close, rand

TEXT, VISION = MllamaTextSpec(), MllamaVisionSpec()
PROMPT = "what color<image>\nis red<image><image>?"


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


PICTURES = [picture(50, 25), picture(25, 50, 1), picture(20, 20, 2)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build_mllama(tmp_path_factory.mktemp("pair"), TEXT, VISION)


@pytest.fixture(scope="module", params=["hf", "llava"])
def model(request, pair):
    return load(pair.text, pair.mmproj, backend="numpy", profile=request.param)


@pytest.fixture
def opened(tmp_path):
    def make(metadata, changes):
        path = tmp_path / "file.gguf"
        write(path, {k: v for k, v in (metadata | changes).items() if v is not None}, {})
        return gguf.read(path)

    return make


def test_the_files_name_the_family(pair, tmp_path):
    both = gguf.read(build_mllama(tmp_path, TEXT, VISION, one_file=True).text)
    for text, tower in ((gguf.read(pair.text), gguf.read(pair.mmproj)), (both, both)):
        assert text_family(text) is mllama.Mllama and tower_family(tower) is mllama_vision.MllamaVision


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"mllama.attention.cross_attention_layers": None}, "cross_attention_layers: missing"),
        ({"mllama.attention.cross_attention_layers": [3, 1]}, r"\[3, 1\], expected rising numbers of layers, 0..4"),
        ({"mllama.attention.cross_attention_layers": [1, 5]}, "expected rising numbers"),
        ({"mllama.attention.sliding_window": 16}, "sliding_window: 16, expected no such key"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, r"tokenizer.ggml.tokens: has no <\|image\|>"),
    ],
)
def test_a_decoder_that_is_refused(opened, changes, problem):
    with pytest.raises(GGUFError, match=problem):
        mllama.Mllama.about(opened(mllama_text_metadata(TEXT), changes), PROFILES["hf"])


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"mllama.vision.intermediate_layers_indices": [0, 4]}, "expected rising numbers of blocks, 0..3"),
        ({"mllama.vision.intermediate_layers_indices": None}, "intermediate_layers_indices: missing"),
        ({"mllama.vision.max_num_tiles": 0}, "max_num_tiles: 0"),
        ({"mllama.vision.max_num_tiles": 17}, "max_num_tiles: 17"),
        ({"mllama.vision.patch_size": 9}, "patch_size: 9 does not divide image_size"),
        ({"mllama.vision.attention.head_count": 3}, "head_count: 3 does not divide width 40"),
        ({"mllama.vision.num_channels": 1}, "num_channels: expected 3"),
    ],
)
def test_a_tower_that_is_refused(opened, changes, problem):
    with pytest.raises(GGUFError, match=problem):
        mllama_vision.MllamaVision.about(opened(mllama_vision_metadata(VISION, TEXT.width), changes), PROFILES["hf"])


def test_a_token_without_a_row_is_refused(tmp_path):
    tensors = mllama_text_tensors(TEXT, Random(0, 1.0))
    tensors["token_embd.weight"] = held(tensors["token_embd.weight"].load()[:-8])
    write(tmp_path / "text.gguf", mllama_text_metadata(TEXT), tensors)
    with pytest.raises(GGUFError, match=r"token_embd.weight: has 394 rows, and none for <\|image\|>, 394"):
        load(tmp_path / "text.gguf")


def test_a_picture_is_one_position_and_no_answer_can_say_it(model):
    request = model.raw_request(PROMPT, PICTURES)
    assert request.token_ids.count(-1) == 3 and [span.n_seen for span in request.spans] == [2 * 17, 2 * 17, 17]
    assert [span.grid for span in request.spans] == [(4, 8), (8, 4), (4, 4)]
    assert model.encode_image(PICTURES[0]).shape == (4 * 17, 48) and model.tokens_per_image == 1
    assert len(model.request_logits(request)[-1]) == model.tokenizer.n_vocab - 1
    with pytest.raises(PromptError, match="tokens: an id is not in 0..393"):
        model.logits("what <|image|> is")


def test_an_answer_by_a_grammar_or_a_bias_has_no_token_of_a_picture(model):
    request = model.raw_request("what<image>", PICTURES[:1])
    assert model.tokenizer.n_vocab == 395, "one more than the logits have"
    sampling = Sampling(grammar=JsonGrammars(model.tokenizer).grammar(), logit_bias={393: 1.0})
    assert model.answer(request, sampling, max_tokens=12).finish().usage["completion_tokens"] <= 12
    with pytest.raises(ParameterError, match="logit_bias: 394: no such token, expected 0 to 393"):
        model.answer(request, Sampling(logit_bias={394: 1.0}))


def test_an_output_with_more_rows_than_tokens_is_refused(tmp_path):
    tensors = mllama_text_tensors(TEXT, Random(0, 1.0))
    tensors["output.weight"] = tensors["token_embd.weight"]
    write(tmp_path / "text.gguf", mllama_text_metadata(TEXT), tensors)
    with pytest.raises(GGUFError, match="output.weight: has 402 rows for 395 tokens"):
        load(tmp_path / "text.gguf")


def test_the_layout_of_tiles():
    layout = TileLayout.of(2, 1, 2, TileCanvas(28, 4))  # 2 x 2 patches and a class token, padded to 8
    assert layout.grid == 5 and layout.n_seen == 10 and len(layout.tile) == 4 * 8
    assert layout.places.tolist() == [[1, 2], [3, 4], [6, 7], [8, 9]]
    assert layout.patches.tolist() == list(range(8))
    assert TileLayout.of(1, 2, 2, TileCanvas(28, 4)).patches.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert np.bincount(layout.tile[:20]).tolist() == [5] * 4 and np.bincount(layout.tile[20:]).tolist() == [3] * 4
    hidden = layout.sees().hidden()
    assert not hidden[:10].any() and not hidden[10:, :10].any() and hidden[10:, 10:].all()


def test_what_rows_see():
    """Tokens of pictures at 2, 5, 6 and 9; those at 5 and 6 are seen together from 6 on."""

    class Ops:
        concat = staticmethod(np.concatenate)

    class Rows:
        length = 0

        def advance(self, count):
            self.length += count

        def truncate(self, length):
            self.length = min(length, self.length)

    cache = LookingCache(Rows(), Ops())
    for at, n_seen in ((2, 3), (5, 1), (6, 2), (9, 4)):
        x = np.full((5, 1, 2), at)
        cache.look(at, n_seen, {0: (x, -x)})
    want = [(0, 0), (0, 0), (0, 3), (0, 3), (0, 3), (3, 4), (3, 6), (3, 6), (3, 6), (6, 10), (6, 10)]
    assert cache.ranges(np.arange(11)).tolist() == [list(pair) for pair in want]
    assert (cache.n_states(False), cache.n_states(True)) == (10, 20)
    kv = cache.kv(0, True)
    assert kv.keys[:, 0, 0].tolist() == [2] * 3 + [5] + [6] * 2 + [9] * 4 + [2] * 2 + [5] * 4 + [6] * 3 + [9]
    assert (kv.values == -kv.keys).all()
    cache.advance(7)  # behind the first picture
    assert cache.n_states(True) == 10
    cache.truncate(6)
    assert [look.at for look in cache.pictures] == [2, 5] and len(cache.kv(0, False).keys) == 4


def test_rows_in_front_of_all_pictures(pair):
    """In transformers their attention sees every state; Meta's code leaves them as they are."""
    ours, theirs = (load(pair.text, pair.mmproj, backend="numpy", profile=name) for name in ("llava", "hf"))
    for model, same in ((ours, True), (theirs, False)):
        with model.trace("blk.1.*", "blk.0.out") as trace:
            model.logits(PROMPT, PICTURES)
        before = model.raw_request(PROMPT, PICTURES).token_ids.index(-1)
        assert (trace["blk.1.out"][:before] == trace["blk.0.out"][:before]).all() == same
        assert not (trace["blk.1.out"][before:] == trace["blk.0.out"][before:]).any(1).any()
    with ours.trace("blk.1.*") as without:
        ours.logits("what is")
    assert not without  # nobody looks


def test_units_change_little(model, monkeypatch):
    parts = model.parts(model.raw_request(PROMPT, PICTURES))
    whole = model.session().feed(parts, all_logits=True)
    monkeypatch.setattr("llava_ref.generation.units.BATCH", 2)
    close(model.session().feed(parts, all_logits=True), whole, 1e-5)
    with model.intervene({"blk.1.Kcur": lambda x: x}):  # everything at once
        close(model.session().feed(parts, all_logits=True), whole, 1e-5)


def test_a_sequence_goes_on_after_it_was_rewound(model):
    parts = model.parts(model.raw_request(PROMPT, PICTURES))
    fresh, session = model.session().feed(parts), model.session()
    session.start([*parts[:2], [7, 8, 9], *parts[3:5], [3]])
    session.advance()
    session.stop()  # before its pictures were reached
    session.feed(session.rewind([*parts[:2], [7, 8, 9], *parts[3:]]))
    rest = session.rewind(parts)
    assert session.n_past == len(parts[0]) + 1 and len(rest) == len(parts) - 2
    np.testing.assert_array_equal(session.feed(rest), fresh)
    other = [*parts[:1], PictureStates(parts[1].data + 1, 34), *parts[2:]]  # seen from in front of it
    assert session.common(other) == 0 and len(session.rewind(other)) == len(parts)
    np.testing.assert_array_equal(session.feed(other), model.session().feed(other))


def test_reuse_changes_no_bit(model):
    request = model.raw_request(PROMPT, PICTURES)
    alone = model.answer(request, Sampling(), max_tokens=6).finish()
    model.reuse = Reuse()
    try:
        replies = [model.answer(request, Sampling(), max_tokens=6).finish() for _ in range(2)]
    finally:
        model.reuse = None
    assert [reply.token_ids for reply in replies] == [alone.token_ids] * 2
    cached = replies[1].usage["prompt_tokens_details"]["cached_tokens"]
    assert cached == len(request.token_ids) - len(request.chunks[-1].token_ids)


@pytest.mark.parametrize("precision, bound", [("fast", 3e-2), ("ggml", 3e-2)])
def test_other_precisions_say_nearly_the_same(pair, precision, bound):
    if precision == "fast":
        pytest.importorskip("llvmlite")
    exact, other = (load(pair.text, pair.mmproj, precision=p, threads=1) for p in ("exact", precision))
    request = exact.raw_request(PROMPT, PICTURES)
    assert close(other.request_logits(request), exact.request_logits(request), bound) is None
    assert other.answer(request, Sampling(), max_tokens=3).finish().usage["completion_tokens"] == 3


def test_what_is_no_picture_of_this_model_is_refused(model):
    for part in (rand(6, 48), PictureStates(rand(6, 47), 6)):
        with pytest.raises(PromptError, match="image rows: "):
            model.forward([[1], part])


def test_bad_weights_are_named(pair, tmp_path):
    tensors = mllama_text_tensors(TEXT, Random(0, 1.0))
    tensors["blk.3.cross_attn_k_proj.weight"] = held(tensors["blk.3.cross_attn_k_proj.weight"].load() * np.inf)
    write(tmp_path / "text.gguf", mllama_text_metadata(TEXT), tensors)
    model = load(tmp_path / "text.gguf", pair.mmproj, backend="numpy")
    with pytest.raises(NumericsError, match="blk.3.Kcur"):
        model.logits(PROMPT, PICTURES)
    model.logits("what is")


def test_attention_to_a_picture_is_of_the_layers_that_look(model):
    request = model.raw_request("what<image> is <image>", PICTURES[:2])
    first, second = (attention_to_picture(model, request, [5, 6, 7], image=image) for image in (0, 1))
    assert first.shape == second.shape == (2, 3, 34) and not first.any()
    close(second.sum(-1), np.ones((2, 3)), 1e-5)
    with pytest.raises(ParameterError, match="stands at one token of this model's sequence"):
        patch(model, model.raw_request("<image>", PICTURES[:1]), model.raw_request("<image>", PICTURES[1:2]), 2)


def test_the_server_answers_about_pictures(pair):
    """Requests as documents of vision interfaces have them: pictures before the text, whole and as a stream."""
    running = pytest.importorskip("tests.api.running")
    content = []
    for rgb in PICTURES[:2]:
        data = io.BytesIO()
        Image.fromarray(rgb).save(data, "PNG")
        url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": "What’s in this image?"})
    messages = [{"role": "user", "content": content}]
    body = {"model": "meta-llama/Llama-3.2-90B-Vision-Instruct", "messages": messages, "max_tokens": 3}
    with running.serving(pair=(pair.text, pair.mmproj)) as server:
        reply = server.post("/v1/openai/chat/completions", body).json()
        stream = server.post("/v1/chat/completions", body | {"stream": True}).text
    assert reply["usage"]["completion_tokens"] == 3
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == 2
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]
    assert "".join(deltas) == reply["choices"][0]["message"]["content"] and stream.rstrip().endswith("data: [DONE]")


def test_inspect_and_check_describe_one_file_and_two(pair, tmp_path, capsys):
    both = str(build_mllama(tmp_path, replace(TEXT, looks=(2,)), VISION, one_file=True).text)
    for file, says in (
        (both, ["look at pictures blocks 2", "at most 4 side by side", "rows of 48"]),
        (str(pair.text), ["look at pictures blocks 1, 3"]),
        (str(pair.mmproj), ["0, 2, 3: features too, before the block"]),
    ):
        assert main(["inspect", file]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert all(line in shown for line in says), shown
    for text, mmproj in ((both, both), (str(pair.text), str(pair.mmproj))):
        assert main(["check", "-m", text, "--mmproj", mmproj]) == 0
        assert "a picture takes 1 of 512 positions" in capsys.readouterr().out
