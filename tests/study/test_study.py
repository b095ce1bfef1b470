"""Lens, attention, ablation and patching: their arithmetic on a tiny pair, what they show on the embedded one."""

import json
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageDraw

import llava_ref
from llava_ref.cli import main
from llava_ref.errors import ParameterError
from llava_ref.generation.sampling import Sampling
from llava_ref.scale import MORE
from llava_ref.study.ablation import ablation, window_of_patches
from llava_ref.study.attention import attention_to_picture, heads_to_picture, picture_positions
from llava_ref.study.lens import logit_lens
from llava_ref.study.overlay import LOST, SHARE, heat, in_a_row, panel, to_source
from llava_ref.study.page import Attended, attend_page
from llava_ref.study.patching import patched_answer, patched_logits, record, sweep
from llava_ref.tools.attend import attend
from llava_ref.tracing.distance import log_softmax

from ..support.tiny_pair import VICUNA, Tiny, write_pair
from .colour_swaps import ask, moved, says, swaps

RGB = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (25, 25, 3), np.uint8)
NO_END = Sampling(logit_bias={2: -100.0})


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), Tiny(template=VICUNA, context=1200))


@pytest.fixture(scope="module", params=["torch", "numpy"])
def model(pair, request):
    return llava_ref.load(*pair, backend=request.param)


@pytest.fixture(scope="module")
def embedded():
    return llava_ref.load(*llava_ref.embedded(), threads=1)


def asked(model, prompt="red <image> and blue", *images, n=3):
    request = model.raw_request(prompt, images or [RGB])
    return request, list(model.answer(request, NO_END, max_tokens=n).finish().token_ids)


def test_the_last_layer_of_the_lens_is_the_model(model):
    request, answer = asked(model)
    lens = logit_lens(model, request, answer, top=4)
    logprobs = log_softmax(model.forward([*model.parts(request), answer[:-1]]))
    n_layer = model.text.config.n_layer
    assert lens.layers == ("embd", *(f"blk.{i}.out" for i in range(n_layer)))
    assert lens.tokens.shape == lens.probabilities.shape == (n_layer + 1, len(logprobs), 4)
    assert lens.token_ids == (*request.token_ids, *answer[:-1])
    assert (lens.tokens[-1] == np.argsort(-logprobs, -1, kind="stable")[:, :4]).all()
    np.testing.assert_allclose(lens.probabilities[-1], np.exp(np.sort(logprobs)[:, ::-1][:, :4]), rtol=1e-5)
    assert not np.allclose(lens.probabilities[0], lens.probabilities[-1])


def test_attention_is_that_of_the_rows_that_predict_the_answer(model):
    request, answer = asked(model, "<image> red <image>", RGB, OTHER)
    found = attention_to_picture(model, request, answer, image=1)
    columns = picture_positions(request, 1)
    assert [request.token_ids[at] for at in columns] == [-1] * 16 and columns[-1] + 1 == len(request.token_ids)
    with model.trace("*.kq_soft_max") as trace:
        model.forward([*model.parts(request), answer[:-1]])
    first = len(request.token_ids) - 1
    for layer, weights in enumerate(found):
        whole = trace[f"blk.{layer}.kq_soft_max"].mean(0)
        np.testing.assert_allclose(weights, whole[first : first + 3, columns], atol=1e-7)
    assert found.shape == (model.text.config.n_layer, 3, 16)


def test_ablation_is_the_loss_of_each_token_with_each_part_covered(model):
    request, answer = asked(model)
    lost = ablation(model, request, answer, cells=2, window=1)
    parts = model.parts(request)

    def top_right(x, at):
        x[: len(x) // 2, len(x) // 2 :] = np.median(RGB.reshape(-1, 3), 0).astype(np.uint8)
        return x

    with model.intervene({"image.seen": top_right}):
        covered = model.encode_image(RGB)

    def score(picture):
        logprobs = log_softmax(model.forward([parts[0], picture, *parts[2:], answer[:-1]])[-3:])
        return logprobs[range(3), answer]

    np.testing.assert_allclose(lost[:, 0, 1], score(parts[1]) - score(covered), rtol=1e-5, atol=1e-9)
    assert lost.shape == (3, 2, 2) and np.abs(lost).max() > 1e-4


def test_taking_away_what_says_nothing_costs_nothing(model):
    with model.intervene({"projector.out": lambda x, at: x * 0 + 1}):
        request, answer = asked(model)
        lost = ablation(model, request, answer, cells=3)
    assert (lost == 0).all()


def test_windows():
    assert window_of_patches((4, 4), 2, (0, 1), 1).astype(int).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [0] * 4,
        [0] * 4,
    ]
    assert window_of_patches((4, 4), 4, (0, 1), 3).astype(int).tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [0] * 4,
        [0] * 4,
    ]
    for grid, cells in ((24, 8), (5, 3), (8, 8), (7, 1)):
        covered = sum(window_of_patches((grid, grid), cells, cell, 1).astype(int) for cell in np.ndindex(cells, cells))
        assert (covered == 1).all()


@pytest.mark.parametrize("cells", [0, 5, -1])
def test_too_many_cells(model, cells):
    request, answer = asked(model)
    with pytest.raises(ParameterError, match="expected 1 to 4"):
        ablation(model, request, answer, cells=cells)
    with pytest.raises(ParameterError, match="expected an odd number"):
        ablation(model, request, answer, window=2)


def test_a_patched_run_goes_on_with_the_other_s_rows(model):
    into, source = (model.raw_request("red <image> and blue", [image]) for image in (RGB, OTHER))
    everything = range(len(into.token_ids))
    assert (patched_logits(model, into, source, "embd", everything) == model.request_logits(source)).all()
    assert (patched_logits(model, into, source, "embd", []) == model.request_logits(into)).all()
    at = picture_positions(into)[3]
    with model.trace("embd", "blk.0.out") as trace:
        patched_logits(model, into, source, "blk.0.out", [at])
    # of the three runs in the block, the last is the patched one
    assert (trace["blk.0.out#1"][at] == record(model, source, "blk.0.out")[at]).all()
    assert (trace["blk.0.out#1"][at - 1] == record(model, into, "blk.0.out")[at - 1]).all()


def test_rows_of_the_tower_are_those_of_the_picture(model):
    into, source = (model.raw_request("<image>", [image]) for image in (RGB, OTHER))
    patched = patched_logits(model, into, source, "projector.out", range(16))
    assert (patched == model.request_logits(source)).all()


def test_prompts_of_other_lengths_are_refused(model):
    with pytest.raises(ParameterError, match="expected the same layout"):
        patched_logits(model, model.raw_request("red"), model.raw_request("red and blue"), "embd", [0])


def test_a_sweep_goes_from_nothing_to_everything(model):
    into, source = (model.raw_request("red <image> and blue", [image]) for image in (RGB, OTHER))
    n = len(into.token_ids)
    groups = {"all": range(n), "none": [], "picture": picture_positions(into), "last": [n - 1]}
    tokens = tuple(int(model.request_logits(r)[-1].argmax()) for r in (source, into))
    if tokens[0] == tokens[1]:
        tokens = (tokens[0], (tokens[0] + 1) % 300)
    effects = sweep(model, into, source, groups, tokens)
    assert effects.shape == (model.text.config.n_layer + 1, 4)
    np.testing.assert_allclose(effects[:, 0], 1, atol=1e-5)
    assert (effects[:, 1] == 0).all()
    assert abs(effects[0, 2] - 1) < 1e-5 and effects[-1, 2] == 0  # all that differs is in the picture, and has left it
    assert effects[0, 3] == 0 and abs(effects[-1, 3] - 1) < 1e-5  # and has come to the last position


def test_swapping_a_region_s_rows_changes_the_answer_s_colour(embedded):
    """One shape's colour differs between two pictures: its rows carry the answer with them, and no others do."""
    for swap in swaps(embedded, 6):
        before, after = swap.colours[1], swap.colours[0]
        assert says(embedded, swap.into) == before != after
        first = picture_positions(swap.into)[0]
        for stage, start in (("projector.out", 0), ("embd", first), ("blk.0.out", first)):
            rows = [start + row for row in swap.region]
            patched = patched_answer(embedded, swap.into, swap.source, stage, rows, max_tokens=4)
            assert patched.text.strip() == after, stage
            assert not moved(embedded, swap, stage, swap.elsewhere)
        assert says(embedded, swap.into) == before  # nothing of it is left


def test_what_an_answer_needs_is_where_the_thing_is(embedded):
    picture = Image.new("RGB", (240, 240), "white")
    picture.paste((214, 40, 46), (30, 30, 90, 90))
    attended = attend(embedded, ask(embedded, picture, "What colour is the square?"), max_tokens=4)
    assert attended.answer.strip() == "red"
    lost = attended.lost.sum(0)
    assert lost[1:3, 1:3].min() > 0.5 and np.abs(lost[4:]).max() < 0.01 > np.abs(lost[:, 4:]).max()
    assert attended.attention.shape == (4, 1, 64) and 0 < attended.attention.sum(2).max() < 1


GRID = np.arange(16, dtype=np.float32).reshape(4, 4)


@pytest.mark.parametrize("square", ["pad-resize", "resize-pad", "crop"])
@pytest.mark.parametrize("shape", [(48, 48), (20, 80), (81, 27), (5, 3)])
def test_maps_land_on_the_pixels_they_are_of(pair, square, shape):
    """A grid whose numbers are drawn into the model's picture comes back to the pixels that they came from."""
    model = llava_ref.load(None, pair[1], quirks={"square": square})
    rgb = np.zeros((*shape, 3), np.uint8)
    seen = model.preprocess(model.decode_image(rgb))
    values = to_source(GRID, seen)
    assert values.shape == shape
    size = seen.seen.shape[0]
    for y in range(0, shape[0], 3):
        for x in range(0, shape[1], 3):
            mx, my = seen.affine.to_model(x + 0.5, y + 0.5)
            inside = 0 <= mx < size and 0 <= my < size
            expected = GRID[int(my * 4 // size), int(mx * 4 // size)] if inside else np.nan
            np.testing.assert_equal(values[y, x], np.float32(expected))
    assert np.isnan(values).any() == (square == "crop" and shape[0] != shape[1])


def test_a_map_leaves_the_picture_its_colours():
    rgb = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    values = np.full((4, 6), np.nan)
    assert (heat(rgb, values, 1) == rgb).all()
    values[1, 2], values[2, 2], values[3] = 2.0, 0.0, 1.0
    over = heat(rgb, values, 2)
    assert (over[[0, 2]] == rgb[[0, 2]]).all() and (over[1, [0, 1, 3, 4, 5]] == rgb[1, [0, 1, 3, 4, 5]]).all()
    np.testing.assert_allclose(over[1, 2], 0.2 * rgb[1, 2] + 0.8 * np.array(MORE), atol=0.5)
    np.testing.assert_allclose(over[3], 0.6 * rgb[3] + 0.4 * np.array(MORE), atol=0.5)


def test_panels_say_their_scale_and_unit(monkeypatch):
    said = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, **_: said.append(text))
    rgb = np.full((4, 6, 3), 100, np.uint8)
    maps = [panel(rgb, "a", None, SHARE), panel(rgb, "b", np.full((4, 6), 0.25), SHARE)]
    maps.append(panel(rgb, "c", np.full((4, 6), -0.5), LOST))
    assert said == ["a", "b", "0", "25 % of the attention", "c", "-0.5", "0.1 nats"]
    assert in_a_row(maps).width == 3 * maps[0].width > 1000
    end = np.asarray(maps[1])[:, 10 + 359].astype(float)
    for ground in (255, 17):  # the end of the scale, over white and over black
        assert (np.abs(end - (0.2 * ground + 0.8 * np.array(MORE))).max(-1) <= 0.5).sum() == 7


class Page(HTMLParser):
    """Text outside of scripts; fails on tags that do not balance and on anything loaded from elsewhere."""

    VOID = {"meta", "img", "input", "br", "link"}

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag != "link" and all(value is None or not value.startswith(("http", "//")) for _, value in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_pair(folder, Tiny(template=VICUNA))
    Image.fromarray(RGB).save(folder / "p.png")
    return folder


@pytest.fixture
def cli(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)

    def run(*arguments):
        status = main([*arguments, "-m", "text.gguf", "--mmproj", "mmproj.gguf", "--image", "p.png"])
        return status, *capsys.readouterr()

    return run


def test_pages_stand_alone(cli, folder):
    question = "is it </script><b>red</b>?"
    assert cli("attend", "-p", question, "-o", "a.html", "-n", "3")[0] == 0
    assert cli("lens", "-p", question, "-o", "l.html", "-n", "3")[0] == 0
    for name in ("a.html", "l.html"):
        page = Page((folder / name).read_text())
        assert question in page.text and "default-src 'none'" in (folder / name).read_text()
    assert "poor attribution" in Page((folder / "a.html").read_text()).text


def test_tokens_cannot_break_a_page(pair):
    model = llava_ref.load(*pair, backend="numpy")
    image = model.decode_image(RGB)
    attended = Attended(
        picture=model.preprocess(image), rgb=image.rgb, prompt="<p>", answer="</pre>", pieces=("</script>", "&<"),
        layers=(0,), attention=np.zeros((1, 2, 16), np.float32), layer=0, heads=np.zeros((3, 2, 16), np.float32),
        lost=np.zeros((2, 4, 4), np.float32), settings=model.settings,
    )  # fmt: skip
    assert "</pre>" in Page(attend_page(attended)).text


def test_numbers_for_machines(cli):
    found = json.loads(cli("attend", "-p", "red", "-o", "a.html", "-n", "3", "--cells", "2", "--json")[1])
    assert np.shape(found["lost_nats"]) == (len(found["tokens"]), 2, 2)
    assert np.shape(found["attention"])[1:] == (len(found["tokens"]), 4, 4)
    layer, heads = found["layers"].index(found["heads"]["layer"]), np.array(found["heads"]["attention"])
    assert len(heads) > 1 and np.allclose(heads.mean(0), found["attention"][layer], atol=1e-6)
    share = np.array(found["attention"]).sum((1, 2, 3))
    assert layer == share.argmax()
    found = json.loads(cli("lens", "-p", "red", "-o", "l.html", "-n", "2", "--top", "3", "--json")[1])
    assert np.shape(found["tokens"]) == (len(found["layers"]), len(found["token_ids"]), 3)
    assert {str(token) for token in np.ravel(found["tokens"])} <= set(found["names"])


def test_a_png(cli, folder):
    shown = {}
    for name, chosen in {"all": (), "layer": ("--layer", "1"), "head": ("--layer", "1", "--head", "0")}.items():
        assert cli("attend", "-p", "red", "-o", f"{name}.png", "-n", "3", "--cells", "1", *chosen)[0] == 0
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.format == "PNG" and picture.width > 1000
            shown[name] = picture.tobytes()
    assert len(set(shown.values())) == 3


def test_a_layer_and_a_head_are_chosen(cli, folder):
    found = json.loads(
        cli("attend", "-p", "red", "-o", "h.html", "--cells", "1", "--layer", "0", "--head", "1", "--json")[1]
    )
    assert found["heads"]["layer"] == 0
    data = json.loads(re.search(r"^const data = (.*);$", (folder / "h.html").read_text(), re.MULTILINE)[1])
    assert (data["layer"], data["head"], data["begin"]) == (0, 1, 0)
    assert np.allclose(data["heads"], found["heads"]["attention"], atol=1e-5)
    for chosen, words in (
        (("--layer", "3"), "--layer: 3: expected one of 0, 1"),
        (("--layer", "-1"), "--layer: -1: expected one of 0, 1"),
        (("--layer", "0", "--head", "4"), "--head: 4: expected 0 to 3"),
        (("--head", "0"), "--head: 0: expected --layer too"),
    ):
        status, _, error = cli("attend", "-p", "red", "-o", "h.html", *chosen)
        assert status == 2 and words in error


def test_a_head_is_the_trace_s(pair):
    model = llava_ref.load(*pair, backend="numpy")
    request = model.raw_request("<image>red", [RGB])
    answer = [5, 6, 7]
    heads, mean = (one(model, request, answer) for one in (partial(heads_to_picture, layer=1), attention_to_picture))
    with model.trace("blk.1.kq_soft_max") as trace:
        model.forward([*model.parts(request), answer[:-1]])
    first, positions = len(request.token_ids) - 1, picture_positions(request)
    wanted = trace["blk.1.kq_soft_max"][:, first : first + 3][..., positions]
    np.testing.assert_array_equal(heads, wanted)
    np.testing.assert_allclose(mean[1], wanted.mean(0), rtol=1e-6)


def test_the_patching_page(embedded, tmp_path, capsys):
    """Where one colour differs between two pictures, that part of the picture carries the answer to the last block."""
    (swap,) = swaps(embedded, 1)
    for name, request in (("source", swap.source), ("into", swap.into)):
        Image.fromarray(request.images[0].rgb).save(tmp_path / f"{name}.png")
    question = swap.into.prompt.shown
    pictures = ["--image", str(tmp_path / "into.png"), "--from-image", str(tmp_path / "source.png")]
    page = tmp_path / "p.html"
    assert main(["patch", *pictures, "--raw", "-p", question, "-o", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == list(swap.colours) and found["stages"] == ["embd", *(f"blk.{i}.out" for i in range(4))]
    maps = np.array(found["picture"])
    assert maps.shape == (5, 4, 4) and maps[0].max() > 0.5 and maps[-1].max() == 0
    y, x = np.unravel_index(maps[0].argmax(), (4, 4))
    rows = {(row // 8 // 2, row % 8 // 2) for row in swap.region}
    assert (y, x) in rows
    assert abs(found["last"][-1] - 1) < 1e-3 and abs(found["last"][0]) < 1e-3
    text = Page(page.read_text()).text
    assert f"What carries “{swap.colours[0]}” instead of “{swap.colours[1]}”" in text


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["patch", "-o", "a.html"], "--from-image: missing"),
        (["patch", "-o", "a.html", "--from-image", "p.png"], "in both runs"),
        (["patch", "-o", "a.html", "--from-prompt", "red and blue and"], "in both runs"),
        (["patch", "-o", "a.html", "--from-image", "p.png", "--cells", "0"], "--cells: 0"),
        (["attend", "-o", "a.gif"], "expected a name that ends with .html or .png"),
        (["attend", "-o", "a.html", "--which", "2"], "--which: 2"),
        (["attend", "-o", "a.html", "--cells", "9"], "cells: 9"),
        (["lens", "-o", "a.html", "--top", "0"], "--top: 0"),
        (["lens", "-o", "p.png"], "is one of the input files"),
    ],
)
def test_wrong_arguments(cli, arguments, says):
    status, _, err = cli(*arguments, "-p", "red")
    assert status == 2 and says in err.splitlines()[-1]
