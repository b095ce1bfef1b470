"""Where llama.cpp and transformers put a message's pictures: what the quirk `image_order` says of them."""

import base64
import json
import re
import urllib.request

import pytest

import llava_ref
from llava_ref.chat.rendering import render
from llava_ref.chat.templates import CHATML, VICUNA
from llava_ref.cli import main
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle

from .test_conform_llama_cpp import OWN_SIZE

TEXT, MMPROJ = llava_ref.embedded()
needs_llama_cpp = pytest.mark.skipif(bool(oracle.missing()), reason=str(oracle.missing()))
needs_transformers = pytest.mark.skipif(bool(reference_hf.missing()), reason=str(reference_hf.missing()))
pytestmark = pytest.mark.oracle


def text(value):
    return {"type": "text", "text": value}


def picture():
    data = base64.b64encode(OWN_SIZE.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


MESSAGES = {
    "picture, text": lambda p: [p, text("What?")],
    "text, picture": lambda p: [text("What?"), p],
    "between": lambda p: [text("Compare"), p, text("with"), p, text("please.")],
    "two texts": lambda p: [text("a"), text("b")],
}


@pytest.fixture(scope="module", params=[VICUNA, CHATML], ids=["vicuna", "chatml"])
def server(request):
    """llama.cpp's own server, asked for prompts only."""
    if reason := oracle.missing():
        pytest.skip(reason)
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.mmproj.path = str(TEXT), str(MMPROJ)
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 512, 1, 1
    settings.warmup, settings.port, settings.use_jinja = False, 0, True
    settings.chat_template = request.param
    return request.param, xllamacpp.Server(settings)


@pytest.mark.parametrize("name", MESSAGES)
def test_llama_cpp_keeps_the_order(server, name):
    source, running = server
    body = json.dumps({"messages": [{"role": "user", "content": MESSAGES[name](picture())}]}).encode()
    asked = urllib.request.Request(
        f"{running.listening_address}/apply-template", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as reply:
        found = re.sub(r"<__media_\w*__>", "<image>", json.loads(reply.read())["prompt"])
    ours = render([{"role": "user", "content": MESSAGES[name]({"type": "image"})}], source, image_order="given")
    assert found == ours


ASK = (
    "conform",
    "--image",
    str(OWN_SIZE),
    "-p",
    "What colour is the circle? <image>",
    "-n",
    "2",
    "--json",
    "--against",
)


@pytest.mark.parametrize(
    "against, explained",
    [
        pytest.param("llama.cpp", ["image_order=given"], marks=needs_llama_cpp),
        pytest.param("hf", ["text_pieces=whole"], marks=needs_transformers),
    ],
)
def test_conform_names_it(capsys, against, explained):
    """LLaVA and transformers put the picture first here, llama.cpp does not."""
    assert main([*ASK, against]) == 1
    (ids,) = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["stage"] == "token_ids"]
    assert ids["explained"] == explained


@needs_llama_cpp
def test_in_llama_cpp_s_profile_the_ids_are_the_same(capsys):
    main([*ASK, "llama.cpp", "--profile", "llama.cpp"])
    assert not [f for f in json.loads(capsys.readouterr().out)["findings"] if f["stage"] == "token_ids"]
