"""Tests the page at /, /page.json, /v1/look, and the page in a browser."""

import base64
import io
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import llava_ref
from llava_ref import scale
from llava_ref.api.limits import Limits
from llava_ref.api.page import FILES, described
from llava_ref.study.attention import attention_to_picture
from llava_ref.study.look import answer_pieces

from ..support.gguf_files import build, write
from .browser import CHROMIUM, BrowserPage
from .conversing import read
from .running import PICTURES, Process, data_uri, load, picture, serving

SAMPLES = json.loads((PICTURES / "pictures.json").read_text())


def wide() -> bytes:
    """Return a sample picture widened to 260 x 240 with its own background colour."""
    source = Image.open(io.BytesIO(picture("caption.png"))).convert("RGB")
    assert source.size == (240, 240)
    page = Image.new("RGB", (260, 240), source.getpixel((1, 1)))
    page.paste(source, (10, 0))
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()


def asked(data: bytes, question: str) -> dict:
    image = {"type": "image_url", "image_url": {"url": data_uri(data)}}
    return {"role": "user", "content": [image, {"type": "text", "text": question}]}


@cache
def caption() -> str:
    """Return the embedded pair's description of the wide picture, right or wrong."""
    return load(*llava_ref.embedded(), None).chat([{"role": "user", "content": asked_here()}]).text


def conversation(answer: str | None = None) -> list:
    answer = caption() if answer is None else answer
    return [asked(wide(), "Describe the picture."), {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def model():
    return load(*llava_ref.embedded(), None)


def test_the_picture_seen_and_the_attention_of_the_tokens(server, model):
    body = server.post("/v1/look", {"messages": conversation()}).json()
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["seen"].partition(",")[2]))))
    shown = model.preprocess(model.decode_image(wide()))
    assert np.array_equal(seen, shown.seen) and body["size"] == [seen.shape[1], seen.shape[0]]
    assert body["source"] == [260, 240] and body["affine"][:2] == [260 / 64, 260 / 64] and body["affine"][3] < 0
    request = model.request([{"role": "user", "content": asked_here()}])
    reply = model.chat([{"role": "user", "content": asked_here()}])
    tokens = [token for token in reply.token_ids if token not in model.tokenizer.end_ids]
    weights = attention_to_picture(model, request, tokens).mean(0).reshape(len(tokens), *body["grid"])
    assert np.allclose(np.array(body["attention"]), weights, atol=1e-5)
    assert [t["text"] for t in body["tokens"]] == [caption()[t["start"] : t["end"]] for t in body["tokens"]]
    assert "".join(t["text"] for t in body["tokens"]) == reply.text


def test_the_picture_is_returned_without_exif_rotation(server):
    """A browser would rotate this picture; the model did not."""
    source, out = Image.new("RGB", (1500, 31), "teal"), io.BytesIO()
    exif = source.getexif()
    exif[0x0112] = 6
    source.save(out, "JPEG", exif=exif)
    turns = [asked(out.getvalue(), "What is it?"), {"role": "assistant", "content": "a line"}]
    body = server.post("/v1/look", {"messages": turns}).json()
    assert body["source"] == [1500, 31]
    assert Image.open(io.BytesIO(base64.b64decode(body["picture"].partition(",")[2]))).size == (720, 15)


def asked_here() -> list:
    return [{"type": "image", "image": wide()}, {"type": "text", "text": "Describe the picture."}]


def test_the_last_of_several_pictures_is_returned(server):
    first = asked(picture("count.png"), "Count the stars.")
    turns = [first, {"role": "assistant", "content": "3"}, *conversation("a star")]
    assert server.post("/v1/look", {"messages": turns}).json()["source"] == [260, 240]
    turns = [*conversation("a star"), {"role": "user", "content": "What is the digit?"}]
    alone = server.post("/v1/look", {"messages": [*turns, {"role": "assistant", "content": "4"}]}).json()
    assert alone["source"] == [260, 240] and [t["text"] for t in alone["tokens"]] == ["4"]


def test_any_picture_of_the_conversation_can_be_looked_at(server, model):
    turns = [asked(picture("count.png"), "Count the stars."), {"role": "assistant", "content": "3"}, *conversation("a")]
    first, last = (server.post("/v1/look", {"messages": turns, "which": which}).json() for which in (1, 2))
    assert (first["source"], first["which"]) == ([240, 240], 1) and (last["source"], last["which"]) == ([260, 240], 2)
    assert np.shape(first["attention"]) == np.shape(last["attention"]) and first["attention"] != last["attention"]
    for which in (3, 0, "1"):
        answer = server.post("/v1/look", {"messages": turns, "which": which})
        assert server.error(answer)[:2] == (400, "which"), which


@pytest.mark.parametrize("text", ["4", " 4", "a  b\n", "</s> is text", "naïve 雪 🂡!"])
def test_pieces_join_to_the_answer(model, text):
    pieces = answer_pieces(model.tokenizer, text)
    assert not {piece.token_id for piece in pieces} & model.tokenizer.vocabulary.control
    assert "".join(piece.text for piece in pieces) == text
    assert all(text[piece.start : piece.end] == piece.text for piece in pieces)


WRONG = {
    "no answer": (conversation()[:1], "messages[0].role", "invalid_value"),
    "an answer alone": (conversation()[1:], "messages", "invalid_value"),
    "empty": (conversation(""), "messages[1].answer", "invalid_value"),
    "no picture": ([{"role": "user", "content": "Hello"}, conversation()[1]], "messages", "invalid_value"),
    "too long": (conversation("a " * 1100), "messages[1].answer", "invalid_value"),
    "no messages": ([], "messages", "invalid_value"),
    "a picture that is none": ([asked(b"words, and no picture", "?"), conversation()[1]], None, None),
}


@pytest.mark.parametrize("messages, param, code", WRONG.values(), ids=WRONG)
def test_wrong_look_requests_are_refused(server, messages, param, code):
    status, found_param, found_code = server.error(server.post("/v1/look", {"messages": messages}))
    assert status == 400
    if param is None:
        param, code = "messages[0].content[0].image_url.url", "unsupported_image_format"
    assert (found_param, found_code) == (param, code)


def test_other_parameters_are_answered_with_a_warning(server):
    looked = server.post("/v1/look", {"messages": conversation(), "speed": 9})
    assert looked.status_code == 200 and [w.partition(":")[0] for w in looked.json()["warnings"]] == ["speed"]
    assert "warnings" not in server.post("/v1/look", {"messages": conversation()}).json()


def test_look_requests_are_within_the_limits():
    with serving(limits=Limits(max_pixels=260 * 240 - 1), n_context=100) as small:
        assert small.error(small.post("/v1/look", {"messages": conversation()}))[2] == "image_too_large"
        here = [asked(picture("count.png"), "How many?"), {"role": "assistant", "content": "red " * 40}]
        assert small.error(small.post("/v1/look", {"messages": here}))[2] == "context_length_exceeded"
        assert small.api._pixels.taken == 0


def test_the_page_loads_nothing_from_other_hosts_and_needs_no_key():
    with serving(api_key="key") as locked:
        for path, (_, kind) in FILES.items():
            answer = locked.client.get(path)
            assert answer.status_code == 200 and answer.headers["content-type"] == kind
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
            assert "//" not in answer.text.replace("// ", "")
        assert locked.error(locked.client.get("/page.json"))[0] == 401
        assert locked.error(locked.post("/v1/look", {}))[0] == 401


def test_page_json_describes_the_model(server, tmp_path):
    body = server.client.get("/page.json").json()
    assert [(s["name"], s["question"]) for s in body["samples"]] == [(s["file"], s["question"]) for s in SAMPLES]
    assert body["vision"] and body["description"].endswith("knows drawn shapes, digits and words, nothing else")
    assert body["limits"] == {"max_body": 64 * 2**20, "max_images": 16, "max_pixels": 80_000_000}
    assert (body["exif"], body["alpha"]) == ("ignore", "convert")
    copies = tuple(tmp_path / path.name for path in llava_ref.embedded())
    for path, copy in zip(llava_ref.embedded(), copies, strict=True):
        copy.write_bytes(path.read_bytes())
    with serving(pair=copies) as other:
        file = llava_ref.gguf.file.read(copies[0])
        body = other.client.get("/page.json").json()
        assert body["samples"] == [], "they belong to the embedded pair"
        assert body["description"] == f"{file['general.name']}, {file['general.description']}"
        other.models.drop()
        assert other.client.get("/page.json").json()["model"] is None


NAMES = {
    "both": ([("general.name", "string", "A"), ("general.description", "string", "a\tb")], "A, a\\tb"),
    "one": ([("general.name", "string", "A")], "A"),
    "none": ([], "a model without a name in its file"),
    "empty": ([("general.name", "string", "")], "a model without a name in its file"),
    "a number": ([("general.name", "u32", 7)], "a model without a name in its file"),
    "not UTF-8": ([("general.name", "string", b"\xff"), ("general.description", "string", "B")], "B"),
    "long": ([("general.name", "string", "x" * 500)], "x" * 199 + "…"),
}


@pytest.mark.parametrize("keys, expected", NAMES.values(), ids=NAMES)
def test_a_file_s_own_description(keys, expected, tmp_path):
    file = llava_ref.gguf.file.read(write(tmp_path, build(keys)))
    loaded = SimpleNamespace(pair=(file.path, None), model=SimpleNamespace(text=SimpleNamespace(file=file)))
    assert described(loaded) == expected


def test_the_first_line_of_serve_describes_the_model():
    command = [sys.executable, "-m", "llava_ref", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        process.terminate()
    knows = "the embedded model, which knows drawn shapes, digits and words, nothing else"
    assert re.fullmatch(rf"shapes-text\.q8_0 \({knows}\) at http://127\.0\.0\.1:\d+\n", line)


CENTRES = """(() => {
  const canvas = document.getElementById("map"), pen = canvas.getContext("2d"), found = [];
  for (let y = 0; y < 8; y++) for (let x = 0; x < 8; x++) {
    const at = [(x + 0.5) / 8 * canvas.width, ((y + 0.5) * 260 / 8 - 10) / 240 * canvas.height];
    found.push([...pen.getImageData(at[0], at[1], 1, 1).data].slice(0, 3));
  }
  return found;
})()"""


def shares(before, now):
    """Return how much of the scale's end each patch shows, 0 to 1: the picture shows through in its own colours."""
    before, now = np.array(before, float), np.array(now, float)
    way = np.array(scale.MORE) - before
    opacity = ((now - before) * way).sum(-1) / (way * way).sum(-1)
    assert np.abs(before + opacity[:, None] * way - now).max() < 3
    return opacity / scale.STRONGEST


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(tmp_path: Path, server):
    """Enter the key, drop a picture, ask, click a word of the answer, and check the attention map."""
    with Process("--api-key", "secret") as locked, BrowserPage(tmp_path / "profile") as page:
        page.open(locked.url)
        page.until("!document.getElementById('key').hidden")
        page.type("#secret", "secret")
        page.click("#key button")
        page.until("document.querySelectorAll('#samples img').length === 8")
        page.drop(("wide.png", wide()))
        page.type("#question", "Describe the picture.")
        page.click("#send")
        page.until("document.querySelectorAll('.word').length && !document.getElementById('look').hidden")
        assert page.js("document.querySelector('.answer p').textContent") == caption()
        assert re.search(
            r"64 picture \+ \d+ text tokens in · \d+ out",
            page.js("document.querySelector('.answer .note').textContent"),
        )
        page.until("document.getElementById('seen').naturalWidth === 64")
        plain, look = page.js(CENTRES), server.post("/v1/look", {"messages": conversation()}).json()
        tokens = [token["text"].strip() for token in look["tokens"]]
        for word, token in (("red", tokens.index("red")), ("green", tokens.index("green"))):
            nth = page.js(f"[...document.querySelectorAll('.word')].findIndex(w => w.textContent === '{word}')")
            page.js(f"document.querySelectorAll('.word')[{nth}].id = '{word}'")
            page.click(f"#{word}")
            page.until(f"document.getElementById('lookname').textContent.includes('{word}')")
            weights = np.ravel(look["attention"][token])
            assert np.abs(shares(plain, page.js(CENTRES)) - weights / max(0.01, weights.max())).max() < 0.02
            assert read(page, "#scale .ends span:last-child") == f"{100 * weights.max():.3g} % of the attention"
        page.screenshot(tmp_path / "page.png")
        page.size(360, 740, dark=True)
        assert page.js("document.documentElement.scrollWidth") == 360
        page.drop(("notes.txt", b"words, and no picture"))
        page.until("document.querySelector('#attached .unknown')")
        page.type("#question", "And this?")
        page.click("#send")
        page.until("document.querySelector('#error p')")
        assert "unsupported_image_format" in page.js("document.getElementById('error').textContent")
        assert page.js("document.getElementById('question').value") == "And this?"
        statuses = [line.partition("status of ")[2][:3] for line in page.complaints]
        assert statuses == ["401", "400"], json.dumps(page.complaints)
