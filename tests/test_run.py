"""`Llava.run` and what a notebook shows: one prompt in every form, a text for each position, heads, readable reprs."""

import re

import numpy as np
import pytest

import llava_ref
from llava_ref.conformance.pairs.idefics3 import Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.mllama import MllamaTextSpec, MllamaVisionSpec, build_mllama
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.conformance.pairs.pixtral import PixtralSpec, build_pixtral
from llava_ref.errors import ParameterError, PromptError
from llava_ref.generation.request import Step
from llava_ref.study.lens import logit_lens

from .support.tiny_pair import VICUNA, Tiny, write_pair

RGB = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (25, 25, 3), np.uint8)
TEXT, TOWER = TextSpec(n_layer=1, context=2048), VisionSpec(n_block=1)
FAMILIES = {
    "llava-1.6": lambda folder: build(folder, TEXT, VisionSpec(n_block=1, sizes=((56, 112), (112, 56)))),
    "smolvlm": lambda folder: build_idefics3(folder, TEXT, Idefics3Spec(n_block=1)),
    "pixtral": lambda folder: build_pixtral(folder, TEXT, PixtralSpec(n_block=1)),
    "llama-3.2-vision": lambda folder: build_mllama(
        folder, MllamaTextSpec(n_layer=2, looks=(1,)), MllamaVisionSpec(n_block=1, taken=(0,), n_global=0)
    ),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), Tiny(template=VICUNA))


@pytest.fixture(scope="module")
def model(pair):
    return llava_ref.load(*pair, backend="numpy")


def test_a_run_has_logits_stages_and_a_text_for_each_position(model):
    run = model.run("red <image> and", [RGB])
    assert run.strings[:3] == ("<s>", " red", " ") and run.strings[-1] == " and"[-1]
    assert run.strings[3:5] == ("<image 0 row 0, col 0>", "<image 0 row 0, col 1>")
    assert [run.strings[at] for at in run.positions()][-1] == "<image 0 row 3, col 3>"
    assert len(run.strings) == len(run.logits) == len(run.trace["blk.1.out"]) == len(run.token_ids)
    np.testing.assert_array_equal(run.logits, model.logits("red <image> and", [RGB]))
    np.testing.assert_array_equal(model.unembed(run.trace["blk.1.out"]), run.logits)
    assert set(run.trace) == {name for name in model.stages() if "kq_soft_max" not in name}
    for names in ("blk.*.out", ["blk.*.out"], ("blk.0.out", "blk.1.out")):
        assert list(model.run("red", names=names).trace) == ["blk.0.out", "blk.1.out"]


def test_every_form_of_a_prompt_is_the_same_run(model):
    messages = [{"role": "user", "content": [{"type": "image", "image": RGB}, {"type": "text", "text": "what?"}]}]
    request = model.request(messages)
    run = model.run(messages)
    same = [model.run(request), model.run(run.token_ids, [RGB]), model.run(np.array(run.token_ids), [RGB])]
    for other in same:
        np.testing.assert_array_equal(other.logits, run.logits)
        assert other.strings == run.strings and other.request.chunks == request.chunks
    assert model.run("red").token_ids == model.run(model.tokenizer.encode("red", bos=True)).token_ids
    reply = model.answer(request, llava_ref.Sampling(), max_tokens=5).finish()
    longer = model.run([*run.token_ids, *reply.token_ids], [RGB])
    assert longer.logits[len(run.logits) - 1 : -1].argmax(-1).tolist() == list(reply.token_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_ids_and_pictures_go_back_in(family, tmp_path):
    pair = FAMILIES[family](tmp_path)
    model = llava_ref.load(pair.text, pair.mmproj, backend="numpy")
    request = model.raw_request("the <image><image> is red", [RGB, OTHER])
    again = model.prompts.of(request.token_ids, [RGB, OTHER])
    assert again.token_ids == request.token_ids and again.describe() == request.describe()
    strings = model.strings(request)
    assert len(strings) == len(request.token_ids) and strings[-1].strip() == "red"
    named = [strings[at] for image in (0, 1) for at in request.positions(image)]
    assert all(re.fullmatch(r"<image [01]( tile \d+)?( row \d+, col \d+)?( line end)?>", name) for name in named)
    assert named[0].startswith("<image 0") and named[-1].startswith("<image 1")
    assert any("line end" in name for name in named) == (family == "llava-1.6")
    assert any("tile 1" in name for name in named) == (family in ("llava-1.6", "smolvlm"))


REFUSED = [
    ([1, 5, -1], [RGB], r"ids: -1 stands 1 times, expected 16, one for each row of a picture"),
    ([1, 5], [RGB], "ids: -1 stands 0 times, expected 16"),
    ([1, -2], [], r"ids\[1\]: -2, expected 0 to 371, or -1"),
    ([1, 372], [], r"ids\[1\]: 372, expected 0 to 371, or -1"),
    ([], [], "prompt: tokens: there are none"),
    ("red", [RGB], "0 in the prompt for 1 images"),
    ([{"role": "user", "content": "red"}], [RGB], "given beside a conversation"),
    ([5] * 129, [], "maximum context length is 128 tokens"),
]


@pytest.mark.parametrize("prompt, images, says", REFUSED, ids=lambda x: str(x)[:20])
def test_wrong_prompts_are_refused(model, prompt, images, says):
    with pytest.raises(PromptError, match=says):
        model.run(prompt, images)


def test_ids_in_a_text_only_model(pair):
    model = llava_ref.load(pair[0], backend="numpy")
    assert len(model.run([1, 5]).logits) == 2
    with pytest.raises(PromptError, match=r"images\[0\]: image: the model was loaded without an mmproj"):
        model.run([1, -1], [RGB])


def test_a_label_tells_a_token_from_all_others(model):
    assert [model.tokenizer.label(token) for token in (1, 3 + 0xE2, model.tokenizer.encode("red")[0])] == [
        "<s>", "<0xE2>", " red"
    ]  # fmt: skip
    assert model.tokenizer.label(0) == "<unk>"


def test_heads(model):
    run = model.run("red <image> and", [RGB], names=["*", "*kq_soft_max"])
    heads, T = run.trace.heads, len(run.token_ids)
    q, k, v = heads("blk.0.Qcur_rope"), heads("blk.0.Kcur_rope"), heads("blk.0.Vcur")
    weights, z = heads("blk.0.kq_soft_max"), heads("blk.0.kqv_out")
    assert q.shape == z.shape == (T, 4, 8) and k.shape == v.shape == (T, 2, 8) and weights.shape == (T, 4, T)
    assert np.shares_memory(z, run.trace["blk.0.kqv_out"])
    for head in range(4):  # a query's head reads key/value head h // (H / Hkv)
        scores = q[:, head] @ k[:, head // 2].T / np.sqrt(8)
        scores[np.triu_indices(T, 1)] = -np.inf
        softmax = np.exp(scores - scores.max(-1, keepdims=True))
        np.testing.assert_allclose(weights[:, head], softmax / softmax.sum(-1, keepdims=True), atol=1e-5)
        np.testing.assert_allclose(weights[:, head] @ v[:, head // 2], z[:, head], atol=1e-5)
    assert heads("vision.blk.0.Qcur").shape == (17, 3, 8) and heads("vision.blk.2.kq_soft_max").shape == (17, 3, 17)
    for name in ("blk.0.ffn_up", "projector.out"):
        with pytest.raises(ParameterError, match=f"stage: {name}: has no heads, expected one of Qcur"):
            heads(name)
    with pytest.raises(KeyError, match=r"nearest: blk\.1\.Qcur"):
        heads("blk.2.Qcur")


def test_a_model_says_what_it_is(pair):
    shown = repr(llava_ref.load(*pair, profile="hf", quirks={"gelu": "tanh"}))
    for words in (
        "text, text.gguf", "llama: 2 blocks of width 32, 4 heads over 2 of keys and values, vocabulary 372",
        "mmproj, mmproj.gguf", "projector mlp: 3 blocks of width 24", "MB of F32",
        "torch on cpu, precision exact; profile hf, with gelu=tanh", "128 positions",
    ):  # fmt: skip
        assert words in shown
    assert "profile llava\n" in repr(llava_ref.load(*pair)) and "with" not in repr(llava_ref.load(*pair))
    alone = llava_ref.load(None, pair[1])
    assert "context" not in repr(alone) and "mmproj.gguf" in alone._repr_html_()


def test_an_answer_and_its_steps_are_readable(model):
    stream = model.stream([{"role": "user", "content": "what?"}], max_tokens=3, logit_bias={2: -100.0})
    steps = list(stream.steps())
    reply = stream.reply
    head = f"<Reply {reply.text!r}: {reply.usage['prompt_tokens']} + 3 tokens, length; "
    assert repr(reply).startswith(head)
    assert re.fullmatch(r"((preprocess|encode|prefill|decode) \d+\.\d ms(, |>))*", repr(reply).removeprefix(head))
    assert re.fullmatch(r"<Step \d+ '.*', \d+\.\d ms>", repr(steps[0])) and ", length, " in repr(steps[-1])
    assert repr(Step(7, "a", "stop", 0.0125)) == "<Step 7 'a', stop, 12.5 ms>"
    assert "what?" in reply._repr_html_()


def test_notebooks_show_tables_and_pictures(model):
    run = model.run("<image>", [RGB], names=["blk.0.out", "image.*"])
    x = run.trace["blk.0.out"]
    cells = f"<td>blk.0.out</td><td>{len(x)} x 32</td><td>float32</td><td>{x.mean():.4g}</td><td>{x.std():.4g}</td>"
    assert cells in run._repr_html_() and "<td>uint8</td>" in run._repr_html_()
    assert repr(run).startswith(f"<PromptRun of {len(x)} positions, 1 picture: logits [{len(x)}, 372], <Trace of 3")
    seen = model.preprocess(model.decode_image(RGB))
    assert repr(seen) == "<Preprocessed: 1 of 28 x 28, of a picture of 47 x 30>"
    assert seen._repr_html_().count("data:image/png;base64,") == 1
    assert repr(model.decode_image(RGB)) == "<DecodedImage 47 x 30, array>"
    table = model.stage_table()
    lines = repr(table).splitlines()
    assert len(lines) == len(table) + 1 and lines[0].startswith("stage") and "model.norm" in lines[-2]
    assert table._repr_html_().count("<tr>") == len(table) + 1
    assert "<script>" not in type(table)([table[0].__class__("<script>", "T", "exact")])._repr_html_()


def test_nothing_prints_its_weights_or_rows(model):
    request = model.raw_request("red <image>", [RGB])
    shown = {name: repr(x) for name, x in {
        "request": request, "text": model.text, "tower": model.tower, "tokenizer": model.tokenizer,
        "file": model.text.file, "session": model.session(), "lens": logit_lens(model, request),
        "rows": model.picture_rows(RGB),
    }.items()}  # fmt: skip
    assert shown["request"] == "<Request of 19 positions, 1 picture: 'red <image>'>"
    assert shown["tokenizer"] == "<Tokenizer of 372 tokens, SPM>"
    assert shown["session"] == "<Session at position 0 of 128>"
    assert shown["lens"] == "<Lens of 3 layers and 19 positions: 5 tokens each>"
    assert shown["rows"] == "<PictureRows [16, 32] of a grid of 4 x 4>"
    assert re.fullmatch(r"<GGUFFile 'text.gguf': \d+ keys, 21 tensors>", shown["file"])
    assert shown["text"].startswith("Llama(file=<GGUFFile") and len(shown["text"]) < 900 > len(shown["tower"])
