"""Prompts are placed before a picture is decoded, and what stands beside a picture is tokenised with the text."""

import io

import numpy as np
import pytest
from PIL import Image

from llava_ref import images, load
from llava_ref.chat.chunks import ImageChunk, TextChunk, chunks, raw
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.conformance.pairs.idefics3 import Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.conformance.pairs.pixtral import PixtralSpec, build_pixtral
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec, QwenVisionSpec, build_qwen2vl
from llava_ref.errors import ImageError, PromptError
from llava_ref.profiles import PROFILES
from llava_ref.tokenizer.quote import IMAGE

RGB = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
DOUBLE = ("\n\n<start_of_image>", 9, "<end_of_image>\n\n")


def png():
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    return file.getvalue()


PNG = png()


def ask(*parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    llama = build(tmp_path_factory.mktemp("llama"), TextSpec(), VisionSpec())
    gemma = build_gemma3(tmp_path_factory.mktemp("gemma3"), Gemma3Spec(), SiglipSpec())
    return {"llama": llama, "gemma3": gemma}


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request, pairs):
    pair = pairs[request.param]
    return load(pair.text, pair.mmproj, backend="numpy", template="vicuna" if request.param == "llama" else None)


@pytest.fixture
def undecoded(monkeypatch):
    """Fail where a picture is decoded."""
    monkeypatch.setattr(images, "load", lambda *a, **b: pytest.fail("a picture was decoded"))


MARKED = {
    "gemma3": ("<start_of_image>", "<end_of_image>"),
    "idefics3": ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    "qwen2vl": ("<|vision_start|>", "<|vision_end|>"),
    "pixtral": ("[IMG_BREAK]", "[IMG_END]"),
}


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Models whose pictures stand between control tokens."""
    made = {
        "gemma3": build_gemma3(tmp_path_factory.mktemp("gemma3"), Gemma3Spec(), SiglipSpec()),
        "idefics3": build_idefics3(tmp_path_factory.mktemp("idefics3"), TextSpec(context=1024), Idefics3Spec()),
        "qwen2vl": build_qwen2vl(tmp_path_factory.mktemp("qwen2vl"), QwenTextSpec(), QwenVisionSpec()),
        "pixtral": build_pixtral(tmp_path_factory.mktemp("pixtral"), TextSpec(), PixtralSpec()),
    }
    return {name: load(pair.text, pair.mmproj, backend="numpy") for name, pair in made.items()}


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("prompt", ["the{}<image>{} red", "the{} <image>red", "<image>\n{1}", "<image>is {}<image>"])
def test_a_marker_beside_a_slot_is_refused_because_the_slot_brings_it(marked, undecoded, name, prompt):
    """llama.cpp and transformers' Idefics3Processor put it there twice; Gemma3Processor takes the second for another
    picture; Qwen2VLProcessor adds none, and finds none in a prompt without them."""
    prompt = prompt.format(*MARKED[name])
    with pytest.raises(PromptError, match=r"prompt: <image>: [<\[].*[>\]] stands beside it, which it brings itself"):
        marked[name].raw_request(prompt, [RGB] * prompt.count(IMAGE))


@pytest.mark.parametrize("name", MARKED)
def test_a_marker_elsewhere_or_typed_by_a_user_is_not(marked, name):
    start, end = MARKED[name]
    model = marked[name]
    assert model.raw_request(f"{start} the <image> red{end}", [RGB]).spans
    typed, plain = (
        model.request(ask(*said)) for said in ((f"what is {start}", RGB, f"{end} red"), ("what is", RGB, "red"))
    )
    for marker in {start, end} & set(model.tokenizer.control_texts):  # Gemma's are user-defined tokens, and anyone's
        mark = model.tokenizer.encode(marker)[0]
        assert typed.token_ids.count(mark) == plain.token_ids.count(mark)


def test_counting_decodes_nothing(model, undecoded):
    for pictures in ([], [PNG], [PNG, RGB]):
        text = model.count_tokens(ask(*pictures, "what color?"))
        assert text > len(pictures) * model.tokens_per_image > 0 or not pictures


def test_a_count_is_the_length_of_the_prompt(model):
    for parts in (("what color?",), (PNG, "the"), (RGB, "the", PNG, "a red")):
        assert model.count_tokens(ask(*parts)) == len(model.request(ask(*parts)).token_ids)


def test_a_prompt_too_long_is_refused_before_a_picture_is_decoded(model, undecoded):
    long = ask(PNG, "the " * 600)
    for call in (model.request, model.chat, model.stream):
        with pytest.raises(PromptError, match="maximum context length is 512 tokens") as caught:
            call(long)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(PromptError, match="maximum context length is 512 tokens"):
        model.raw_request(IMAGE * 60, [PNG] * 60)
    with pytest.raises(pytest.fail.Exception, match="a picture was decoded"):
        model.request(ask(PNG, "the"))


def test_a_broken_picture_is_named_before_the_length(model):
    with pytest.raises(ImageError, match=r"messages\[0\]\.content\[0\]: format: "):
        model.count_tokens(ask(b"no picture", "the"))


def test_the_places_of_pictures_are_their_spans(model):
    request = model.request(ask(RGB, "the", PNG))
    assert request.spans == (model.span(50, 30),) * 2
    assert request.token_ids.count(-1) == 2 * model.tokens_per_image
    described = [chunk for chunk in request.describe() if chunk["type"] == "image"]
    assert described == [{"type": "image", "n_tokens": model.tokens_per_image, "width": 50, "height": 30}] * 2


def test_a_model_without_a_tower_refuses_pictures_before_decoding(pairs, undecoded):
    text = load(pairs["gemma3"].text, backend="numpy")
    for call in (text.count_tokens, text.request):
        with pytest.raises(PromptError, match=r"content\[0\]: image: the model was loaded without an mmproj file"):
            call(ask(PNG, "the"))


@pytest.fixture(scope="module")
def gemma(pairs):
    return load(pairs["gemma3"].text, pairs["gemma3"].mmproj, backend="numpy")


def pieces(gemma, text, stretches, profile="llava"):
    """Return the texts of the tokens around each slot."""
    tokenizer = gemma.tokenizer
    found = chunks(raw(text, len(stretches), tokenizer), tokenizer, PROFILES[profile], stretches)
    return [[tokenizer.text_of(i) for i in c.token_ids] if isinstance(c, TextChunk) else c.index for c in found]


@pytest.mark.parametrize("profile", ["llava", "hf", "llama.cpp"])
def test_line_feeds_of_markers_and_text_are_one_token(gemma, profile):
    """The vocabulary has a token for each run of line feeds: \\n\\n beside the user's \\n is \\n\\n\\n."""
    assert pieces(gemma, f"a\n{IMAGE}\n\nb", [DOUBLE], profile) == [
        ["<bos>", "a", "\n\n\n", "<start_of_image>"],
        0,
        ["<end_of_image>", "\n\n\n\n", "b"],
    ]


def test_markers_of_two_pictures_meet_between_them(gemma):
    plain = ("<start_of_image>", 9, "<end_of_image>")
    assert pieces(gemma, f"{IMAGE}{IMAGE}", [DOUBLE, plain]) == [
        ["<bos>", "\n\n", "<start_of_image>"],
        0,
        ["<end_of_image>", "\n\n", "<start_of_image>"],
        1,
        ["<end_of_image>"],
    ]
    assert pieces(gemma, f"{IMAGE}{IMAGE}", [DOUBLE, DOUBLE])[2] == [
        "<end_of_image>",
        "\n\n\n\n",
        "<start_of_image>",
    ]


def test_without_markers_a_slot_stands_alone(gemma):
    assert pieces(gemma, f"a{IMAGE}b", [(9,)]) == [["<bos>", "a"], 0, ["b"]]
    assert [type(c) for c in chunks(raw(IMAGE, 1, gemma.tokenizer), gemma.tokenizer, PROFILES["llava"])] == [
        TextChunk,
        ImageChunk,
    ]


def test_a_user_s_marker_is_no_picture(gemma):
    """Only the model's own markers stand beside rows; what a user types as text adds none."""
    request = gemma.request(ask("the <start_of_image> a"))
    assert -1 not in request.token_ids and request.spans == ()


def test_a_picture_of_several_stretches(gemma):
    """Text between two stretches is a text of its own; rows that touch are apart; the user's text joins the ends."""
    stretches = [("\n<start_of_image>", 2, "\n", 3, 1, "\n"), (4,)]
    tokenizer = gemma.tokenizer
    found = chunks(raw(f"a\n{IMAGE}\n{IMAGE}", 2, tokenizer), tokenizer, PROFILES["hf"], stretches)
    texts = [[tokenizer.text_of(i) for i in c.token_ids] if isinstance(c, TextChunk) else c for c in found]
    assert texts == [
        ["<bos>", "a", "\n\n", "<start_of_image>"],
        ImageChunk(0, 0, 2),
        ["\n"],
        ImageChunk(0, 2, 5),
        ImageChunk(0, 5, 6),
        ["\n\n"],
        ImageChunk(1, 0, 4),
    ]


@pytest.mark.parametrize("profile, feeds", [("llava", True), ("hf", True), ("llama.cpp", False)])
def test_markers_follow_the_profile(pairs, profile, feeds):
    model = load(pairs["gemma3"].text, pairs["gemma3"].mmproj, backend="numpy", profile=profile)
    request = model.raw_request(f"a{IMAGE}b", [RGB])
    texts = [model.tokenizer.text_of(i) if i >= 0 else "." for i in request.token_ids]
    around = ["\n\n"] if feeds else []
    picture = [*around, "<start_of_image>", *["."] * 9, "<end_of_image>", *around]
    assert texts == ["<bos>", "a", *picture, "b"]
