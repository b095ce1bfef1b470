"""Test the quirk `image_order`, the order of pictures and texts: in prompts, on the command line and by `conform`."""

import json

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.chat.losses import ExpectedMessage, loss
from llava_ref.chat.rendering import render
from llava_ref.chat.templates import CHATML, TEMPLATES, VICUNA
from llava_ref.cli import main
from llava_ref.errors import TemplateError
from llava_ref.profiles import PROFILES

from ..support.tiny_pair import Tiny, write_pair

IMAGE = {"type": "image"}
PARTS = """{% for m in messages %}[{{ m.role[0] }}]{% if m.content is string %}{{ m.content }}{% else %}\
{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endif %}{% endfor %}"""
FIRST = """{% for m in messages %}[{{ m.role[0] }}]{% for p in m.content if p.type == 'image' %}<image>{% endfor %}\
{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}"""
LAST = """{% for m in messages %}[{{ m.role[0] }}]{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}\
{% for p in m.content if p.type == 'image' %}<image>{% endfor %}{% endfor %}"""


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return {"role": "user", "content": list(parts)}


LATE = [user(text("a"), IMAGE, text("b"), IMAGE)]
EARLY = [user(IMAGE, text("a"))]
TURNS = [user(text("a"), IMAGE), {"role": "assistant", "content": "b"}, user(text("c"), IMAGE)]


@pytest.mark.parametrize(
    "source, first, template, given",
    [
        (VICUNA, *["USER: <image>\n<image>\na\nb "] * 2, "USER: a<image>b<image> "),
        (CHATML, *["<|im_start|>user\n<image>\n<image>\na\nb<|im_end|>\n"] * 2,
         "<|im_start|>user\na<image>b<image><|im_end|>\n"),
        (PARTS, "[u]<image><image>ab", "[u]a<image>b<image>", "[u]a<image>b<image>"),
        (FIRST, "[u]<image><image>ab", "[u]<image><image>ab", "[u]a<image>b<image>"),
        (LAST, "[u]<image>\n<image>\na\nb", "[u]ab<image><image>", "[u]a<image>b<image>"),
    ],
    ids=["vicuna", "strings only", "as they come", "pictures first", "pictures last"],
)  # fmt: skip
def test_the_three_orders(source, first, template, given):
    prompts = {
        order: render(LATE, source, image_order=order, add_generation_prompt=False)
        for order in ("first", "template", "given")
    }
    assert prompts == {"first": first, "template": template, "given": given}


@pytest.mark.parametrize("source", [*TEMPLATES.values(), PARTS, FIRST])
def test_a_picture_that_comes_first_is_rendered_first(source):
    """Check all three orders: they differ only in the line feed, which llama.cpp's strings lack."""
    first, template, given = (render(EARLY, source, image_order=order) for order in ("first", "template", "given"))
    assert first == template and given == first.replace("<image>\n", "<image>")


@pytest.mark.parametrize("source", [*TEMPLATES.values(), PARTS, FIRST])
@pytest.mark.parametrize("order", ["first", "template", "given"])
def test_a_picture_stays_in_its_message(source, order):
    prompt = render(TURNS, source, image_order=order)
    start, end = prompt.index("b"), prompt.rindex("<image>")
    assert prompt.index("<image>") < start < end and prompt.count("<image>") == 2


MESSAGES = [
    ExpectedMessage((0,), True),
    ExpectedMessage((1, None), False),
    ExpectedMessage((2,), False),
    ExpectedMessage((None, 3), False),
]
PATHS = {n: f"messages[{n}]" for n in range(4)}


@pytest.mark.parametrize(
    "rendered, order, problem",
    [
        ([0, 1, None, 2, None, 3], "given", None),
        ([0, 1, None, 2, None, 3], "first", None),
        ([0, None, 1, 2, 3, None], "template", None),
        ([1, None, 2, None, 3, 0], "template", None),
        ([0, None, 1, 2, None, 3], "given", "changes the order of the parts"),
        ([0, 2, 1, None, None, 3], "template", "changes the order of the parts"),
        ([0, None, None, 1, 2, 3], "template", "changes the order of the parts"),
        ([0, 1, 2, None, None, 3], "template", "changes the order of the parts"),
        ([0, 1, None, 2, 3], "template", "makes 1 slots for 2 pictures"),
        ([0, None, 2, None], "template", "drops messages[1], messages[3]"),
    ],
)
def test_a_wrong_order_is_named(rendered, order, problem):
    assert (loss(rendered, MESSAGES, order, PATHS) or (0, None))[1] == problem


def test_only_a_system_message_may_move():
    """Move all messages. Many templates put the system message into the first or the last question."""
    source = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert render(messages, source) == "us"
    with pytest.raises(TemplateError, match="changes the order of the parts"):
        render([*messages, {"role": "assistant", "content": "a"}], source)


def test_each_profile_has_an_order_of_its_own():
    orders = {name: quirks.image_order for name, quirks in PROFILES.items()}
    assert orders == {"llava": "first", "hf": "template", "llama.cpp": "given"}


# The command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    write_pair(folder, Tiny(template=VICUNA, context=256))
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (28, 28, 3), np.uint8)).save(folder / "picture.png")
    return folder


@pytest.fixture
def cli(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)

    def run(*arguments):
        status = main([*arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


PAIR = ("-m", "text.gguf", "--mmproj", "mmproj.gguf", "--backend", "numpy")
ASK = ("generate", *PAIR, "--image", "picture.png", "-n", "1")


@pytest.mark.parametrize(
    "options, prompt, order",
    [
        ((), "USER: <image>\nthe one", "first"),
        (("--profile", "llama.cpp"), "USER: the one<image>", "given"),
        (("--profile", "hf"), "USER: <image>\nthe one", "template"),
        (("--quirk", "image_order=given"), "USER: the one<image>", "given"),
    ],
)
def test_the_profile_decides_where_the_picture_stands(cli, options, prompt, order):
    _, out, err = cli(*ASK, "-p", "the one <image>", *options, "--json", "--show-prompt")
    assert json.loads(out)["prompt"] == f"{prompt} ASSISTANT:"
    assert json.loads(out)["quirks"]["image_order"] == order
    assert f"pictures: {order} (quirk image_order)" in err


def test_a_prompt_with_too_many_slots_is_an_error(cli):
    status, _, err = cli(*ASK, "-p", "<image> or <image>")
    assert status == 2
    assert err == "error: --prompt: <image>: 2 in the prompt for 1 pictures, expected one for each, or none\n"


def test_a_slot_without_a_picture_is_text(cli):
    _, out, _ = cli("generate", *PAIR, "-n", "1", "-p", "<image>", "--json")
    assert json.loads(out)["prompt"] == "USER: <image> ASSISTANT:"
    assert [chunk["type"] for chunk in json.loads(out)["chunks"]] == ["text"]


def test_conform_names_the_order(cli):
    status, out, _ = cli(
        "conform", *PAIR, "--image", "picture.png", "-p", "the one <image>", "--against",
        "this:backend=numpy,image_order=given", "-n", "1",
    )  # fmt: skip
    assert status == 1 and "vanishes with --quirk image_order=given: where a message's pictures stand" in out
    status, out, _ = cli("conform", *PAIR, "--image", "picture.png", "-p", "the one <image>", "--against",
                         "this:backend=numpy,image_order=template", "-n", "1")  # fmt: skip
    assert status == 0, out


# A template of one's own


def test_a_template_from_a_file(cli, folder):
    (folder / "mine.jinja").write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    _, out, err = cli("generate", *PAIR, "-n", "1", "-p", "the", "--json", "--show-prompt", "--template", "mine.jinja")
    assert json.loads(out)["prompt"] == "<the>" and "template: given (read from mine.jinja)" in err
    model = llava_ref.load(folder / "text.gguf", backend="numpy", template=folder / "mine.jinja")
    assert model.request([{"role": "user", "content": "the"}]).prompt.shown == "<the>"
    model = llava_ref.load(folder / "text.gguf", backend="numpy", template="({{ messages[0].content }})")
    assert model.request([{"role": "user", "content": "the"}]).prompt.shown == "(the)"


def test_a_known_name_comes_before_a_file(cli, folder):
    (folder / "chatml").write_text("{{ messages[0].content }}")
    _, out, _ = cli("generate", *PAIR, "-n", "1", "-p", "the", "--json", "--template", "chatml")
    assert json.loads(out)["prompt"].startswith("<|im_start|>user\nthe")


@pytest.mark.parametrize(
    "source, name, error",
    [
        (None, "nothing", "template: 'nothing': unknown, expected one of vicuna, mistral-instruct, llama-3.2-vision, "
         "llava-llama-3, chatml, gemma, smolvlm, mistral-small, pixtral, or a file with a chat template"),
        (None, "a" * 5000, "template: 'aaa"),
        ("\n\n{{ 1 // 0 }}", "bad.jinja", "bad.jinja: template: line 3: divides by zero"),
        ("{% if %}", "bad.jinja", "bad.jinja: template: line 1: cannot be read: expected an expression"),
        ("hi", "bad.jinja", "bad.jinja: template: drops messages[0].content"),
        ("", "bad.jinja", "bad.jinja: file: empty, expected a chat template"),
    ],
)  # fmt: skip
def test_a_template_that_fails_gives_an_error_of_one_line(cli, folder, source, name, error):
    if source is not None:
        (folder / name).write_text(source)
    status, out, err = cli("generate", *PAIR, "-n", "1", "-p", "the", "--template", name)
    assert status == 2 and out == "" and err.startswith(f"error: {error}") and err.count("\n") == 1


def test_an_error_of_a_files_own_template_names_the_file(cli, folder):
    (folder / "bad").mkdir()
    write_pair(folder / "bad", Tiny(template="{% for m in messages %}\n{{ m.content.x.y }}{% endfor %}"))
    _, _, err = cli("generate", "-m", "bad/text.gguf", "-p", "the")
    assert err == "error: text.gguf: tokenizer.chat_template: line 2: a text has no 'x'\n"
