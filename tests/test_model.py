"""The public class on a tiny random pair: one behaviour whatever the way in, and every refusal before any work."""

import io

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref import GGUFError, ImageError, NumericsError, PairError, ParameterError, PromptError
from llava_ref.generation.sampling import Sampling

from .support.helpers import close
from .support.tiny_pair import VICUNA, Tiny, write_mmproj, write_pair, write_text

RGB = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
N = 16  # positions of one picture


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), Tiny(template=VICUNA))


@pytest.fixture(scope="module", params=["torch", "numpy"])
def model(pair, request):
    return llava_ref.load(*pair, backend=request.param)


@pytest.fixture(scope="module")
def one(pair):
    return llava_ref.load(*pair, backend="numpy")


def is_picture(part):
    return not isinstance(part, str) or part.endswith(".png")


def ask(*parts):
    content = [{"type": "image", "image": p} if is_picture(p) else {"type": "text", "text": p} for p in parts]
    return [{"role": "user", "content": content}]


def test_chat_counts_what_it_was_given(model):
    reply = model.chat(ask(RGB, "what is in the picture?"), max_tokens=7)
    details = reply.usage["prompt_tokens_details"]
    assert details["image_tokens"] == N and details["cached_tokens"] == 0
    text_ids = [i for chunk in reply.chunks if chunk["type"] == "text" for i in chunk["token_ids"]]
    assert details["text_tokens"] == len(text_ids)
    assert reply.usage["prompt_tokens"] == N + len(text_ids)
    assert len(reply.token_ids) == reply.usage["completion_tokens"] <= 7
    assert {"type": "image", "n_tokens": N, "width": 47, "height": 30} in reply.chunks
    assert reply.prompt.count("<image>") == 1 and "what is in the picture?" in reply.prompt
    assert set(reply.timings) == {
        f"{name}_s" for name in ("load", "preprocess", "encode", "prefill", "decode", "prefill_tok", "decode_tok")
    }


def test_backends_agree(pair):
    replies = [llava_ref.load(*pair, backend=b).chat(ask(RGB, "red"), max_tokens=12) for b in ("torch", "numpy")]
    assert replies[0].token_ids == replies[1].token_ids


def test_decoding_step_by_step_is_one_pass(model):
    request = model.request(ask("a ", RGB, "is the ", RGB[::-1]))
    reply = model.answer(request, Sampling(), max_tokens=9).finish()
    rows = [model.encode_image(x) for x in (RGB, RGB[::-1])]
    images = iter(rows)
    parts = [next(images) if hasattr(c, "index") else c.token_ids for c in request.chunks]
    logits = model.session().feed([*parts, reply.token_ids], all_logits=True)
    start = len(request.token_ids) - 1
    assert logits[start : start + len(reply.token_ids)].argmax(-1).tolist() == list(reply.token_ids)


def test_stream_is_chat_in_pieces(one):
    messages = ask(RGB, "what?")
    stream = one.stream(messages, max_tokens=20, temperature=0.9, seed=4)
    pieces = list(stream)
    reply = one.chat(messages, max_tokens=20, temperature=0.9, seed=4)
    assert len(pieces) > 1 and all(pieces)
    assert "".join(pieces) == reply.text == stream.reply.text
    assert one.chat(messages, max_tokens=20, temperature=0.9, seed=5).token_ids != reply.token_ids


def test_a_stop_string_cuts_the_answer(one):
    whole = one.chat(ask("what?"), max_tokens=20, temperature=1.0, seed=1).text
    stop = whole[5:8]
    reply = one.chat(ask("what?"), max_tokens=20, temperature=1.0, seed=1, stop=["never", stop])
    assert reply.text == whole[: whole.index(stop)] and reply.finish_reason == "stop"


def test_penalties_count_the_prompt(one):
    logits = one.logits("the a", images=[])[-1].astype(float)
    a = one.tokenizer.encode("the a")[-1]
    bias = {a: logits.max() - logits[a] + 0.5}  # now `a` is the likeliest, by 0.5
    request = one.raw_request("the a")
    plain, penalised = (
        one.answer(request, Sampling(logit_bias=bias, presence_penalty=p), max_tokens=1).finish().token_ids
        for p in (0.0, 1.0)
    )
    assert plain == (a,) != penalised


def test_an_answer_ends_with_the_context(pair):
    model = llava_ref.load(*pair, backend="numpy", n_context=40)
    used = model.count_tokens(ask(RGB, "a"))
    reply = model.chat(ask(RGB, "a"), logit_bias={2: -100.0})
    assert reply.finish_reason == "length"
    assert reply.usage["total_tokens"] == 40 and used == reply.usage["prompt_tokens"] > N


def test_a_prompt_without_room_is_refused_before_any_work(pair, monkeypatch):
    model = llava_ref.load(*pair, backend="numpy", n_context=30)
    monkeypatch.setattr(model, "encode", lambda *a: pytest.fail("encoded a picture"))
    with pytest.raises(PromptError, match="maximum context length is 30 tokens"):
        model.chat(ask(RGB, RGB, "what?"))
    with pytest.raises(PromptError, match="maximum context length is 30 tokens"):
        model.logits("<image> and <image>", images=[RGB, RGB])


@pytest.mark.parametrize(
    "bad", [{"max_tokens": 0}, {"temperature": -1}, {"stop": [""]}, {"logit_bias": {372: 1.0}}], ids=str
)
def test_a_wrong_setting_is_refused_before_any_work(one, bad, monkeypatch):
    monkeypatch.setattr(one, "encode", lambda *a: pytest.fail("encoded a picture"))
    with pytest.raises(ParameterError, match=next(iter(bad))):
        one.stream(ask(RGB, "a"), **bad)


def test_every_form_of_a_picture_is_the_same(one, tmp_path):
    path, buffer = tmp_path / "picture.png", io.BytesIO()
    Image.fromarray(RGB).save(path)
    Image.fromarray(RGB).save(buffer, "PNG")
    want = one.encode_image(RGB)
    assert want.shape == (N, 32) and want.dtype == np.float32
    for source in (path, str(path), buffer.getvalue(), Image.fromarray(RGB)):
        np.testing.assert_array_equal(one.encode_image(source), want)


def test_a_picture_that_cannot_be_read_is_named(one, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    for source, start in (
        (tmp_path / "bad.png", f"{tmp_path}/bad.png: format: "),
        (str(tmp_path / "none.png"), f"{tmp_path}/none.png: file: No such file"),
        (b"not a picture", r"messages[0].content[1]: format: "),
    ):
        with pytest.raises(ImageError) as caught:
            one.chat(ask("what?", source))
        assert str(caught.value).startswith(start)


def test_pictures_are_seen_in_their_order(one):
    black, white = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    a, b = (one.logits("<image> a <image>?", images=pictures) for pictures in ([black, white], [white, black]))
    assert a.shape == b.shape == (len(one.raw_request("<image> a <image>?", [black, white]).token_ids), 372)
    assert np.abs(a[-1] - b[-1]).max() > 1e-3


def test_logits_of_a_raw_prompt(model):
    request = model.raw_request("the <image>what?", [RGB])
    logits = model.logits("the <image>what?", images=[RGB])
    assert logits.dtype == np.float32 and len(logits) == len(request.token_ids)
    reply = model.answer(request, Sampling(), max_tokens=1).finish()
    assert reply.token_ids == (int(logits[-1].argmax()),)
    ids = model.tokenizer.encode("the ", bos=True)
    close(model.logits("the "), logits[: len(ids)], 1e-5)


@pytest.mark.parametrize("prompt, pictures", [("no slot", 1), ("<image>", 0), ("<image><image>", 1)])
def test_slots_and_pictures_must_agree(one, prompt, pictures):
    with pytest.raises(PromptError):
        one.logits(prompt, images=[RGB] * pictures)


def test_a_profile_changes_what_is_computed(pair, one):
    other = llava_ref.load(*pair, backend="numpy", profile="llama.cpp")
    assert np.abs(other.encode_image(RGB) - one.encode_image(RGB)).max() > 0.1
    same = llava_ref.load(*pair, backend="numpy", profile="llama.cpp", quirks=one.settings["quirks"])
    np.testing.assert_array_equal(same.encode_image(RGB), one.encode_image(RGB))


def test_text_only_refuses_pictures(pair):
    model = llava_ref.load(pair[0], backend="numpy")
    assert model.chat(ask("what?"), max_tokens=2).usage["prompt_tokens_details"]["image_tokens"] == 0
    for call in (
        lambda: model.chat(ask(RGB, "what?")),
        lambda: model.logits("<image>", images=[RGB]),
    ):
        with pytest.raises(PromptError, match="mmproj"):
            call()
    with pytest.raises(ParameterError, match="mmproj"):
        model.encode_image(RGB)


def test_vision_only_encodes(pair, one):
    model = llava_ref.load(None, pair[1], backend="numpy")
    np.testing.assert_array_equal(model.encode_image(RGB), one.encode_image(RGB))
    with pytest.raises(PromptError, match="text model"):
        model.chat(ask("what?"))


SETTINGS = [
    ({"precision": "fast", "backend": "numpy"}, "precision: 'fast': needs backend torch, not numpy"),
    ({"precision": "half"}, "precision: 'half': unknown, expected one of exact, fast, ggml"),
    ({"backend": "jax"}, "backend: 'jax'"),
    ({"backend": "numpy", "device": "cuda"}, "device: 'cuda'"),
    ({"device": "tpu"}, "device: 'tpu'"),
    ({"profile": "mine"}, "profile: 'mine'"),
    ({"quirks": {"gelu": "maybe"}}, "quirk: gelu"),
    ({"quirks": {"nose": "long"}}, "quirk: 'nose'"),
    ({"threads": 0}, "threads: 0"),
    ({"weight_cache": -1}, "weight_cache: -1"),
    ({"n_context": 129}, "n_context: 129: the model has 128 positions"),
    ({"n_context": 0}, "n_context: 0"),
]


@pytest.mark.parametrize("settings, says", SETTINGS, ids=lambda x: str(x)[:30])
def test_settings_are_checked(pair, settings, says):
    with pytest.raises(ParameterError) as caught:
        llava_ref.load(*pair, **settings)
    assert str(caught.value).startswith(says)


def test_cuda_where_there_is_none(pair):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ParameterError, match="device: 'cuda'"):
        llava_ref.load(*pair, device="cuda")


def test_files_that_cannot_work(pair, tmp_path):
    with pytest.raises(GGUFError, match="mmproj file"):
        llava_ref.load(pair[1], pair[0])
    with pytest.raises(GGUFError, match=r"nowhere\.gguf"):
        llava_ref.load(tmp_path / "nowhere.gguf")
    with pytest.raises(ParameterError):
        llava_ref.load(None)
    wide = write_mmproj(tmp_path / "wide.gguf", Tiny(projected=48))
    with pytest.raises(PairError, match="has 48 rows, but the text model's embedding_length is 32"):
        llava_ref.load(pair[0], wide)


def test_numbers_that_are_none_end_the_answer(tmp_path):
    path = write_text(tmp_path / "text.gguf", Tiny(template=VICUNA, poisoned="blk.1.ffn_down.weight"))
    with pytest.raises(NumericsError, match=r"blk\.1\."):
        llava_ref.load(path, backend="numpy").chat(ask("what?"), max_tokens=3)


def test_quantised_weights_answer_alike(tmp_path, one):
    pair = write_pair(tmp_path, Tiny(template=VICUNA, type="Q8_0"))
    logits = llava_ref.load(*pair, backend="numpy").logits("the <image> is", images=[RGB])
    close(logits, one.logits("the <image> is", images=[RGB]), 0.05)


def test_the_embedded_pair_is_there():
    text, mmproj = llava_ref.embedded()
    model = llava_ref.load(text, mmproj, backend="numpy")
    assert model.encode_image(RGB).shape == (model.tokens_per_image, model.text.config.width)
