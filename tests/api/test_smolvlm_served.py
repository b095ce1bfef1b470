"""A random pair of SmolVLM, served: pictures in tiles that the text names, seeds, reuse, texts that look like names."""

import io
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import llava_ref
from llava_ref.conformance.pairs.idefics3 import Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.pairs import TextSpec

from .running import data_uri, serving

SCORED = {"max_tokens": 12, "logprobs": True, "top_logprobs": 2}
QUESTION = {"type": "text", "text": "what is the color"}


def png(width, height):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


WIDE, TALL = png(131, 40), png(30, 77)


def image(data):
    return {"type": "image_url", "image_url": {"url": data_uri(data)}}


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory):
    tower = Idefics3Spec(image_size=28, patch_size=7, longest=84)
    pair = build_idefics3(tmp_path_factory.mktemp("pair"), TextSpec(context=1024), tower)
    with serving(pair=(pair.text, pair.mmproj)) as server:
        yield server


def said(server, content, **settings):
    answer = server.chat(content, **settings)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("content", [[image(WIDE), QUESTION], [QUESTION, image(TALL), image(WIDE)], "what is red"])
def test_an_answer_is_that_of_the_library(smolvlm, content):
    model = smolvlm.models.current.model
    messages = [{"role": "user", "content": content}]
    request = model.request(messages)
    own = model.answer(request, llava_ref.Sampling(), max_tokens=12).finish()
    body = said(smolvlm, content, **SCORED)
    assert body["choices"][0]["message"]["content"] == own.text
    assert body["usage"]["prompt_tokens"] == len(request.token_ids)


def test_a_wide_picture_takes_its_tiles_and_their_names(smolvlm):
    """Three tiles and an overview of 4 rows each; a control token and a name before each, one token behind the last."""
    model = smolvlm.models.current.model
    request = model.request([{"role": "user", "content": [image(WIDE), QUESTION]}])
    names = ("<fake_token_around_image>", "<row_1_col_3>", "<global-img>")
    assert request.spans[0].n_rows == request.token_ids.count(-1) == 16
    assert [request.token_ids.count(model.tokenizer.encode(name)[0]) for name in names] == [5, 1, 1]
    body = said(smolvlm, [image(WIDE), QUESTION], max_tokens=1)
    assert body["usage"]["prompt_tokens"] == len(request.token_ids)


def test_a_seed_gives_the_same_answer_and_another_one_another(smolvlm):
    asked = {"temperature": 1.5, "max_tokens": 12, "n": 3}
    first, again = (said(smolvlm, [image(WIDE), QUESTION], seed=7, **asked)["choices"] for _ in range(2))
    other = said(smolvlm, [image(WIDE), QUESTION], seed=70, **asked)["choices"]
    assert first == again and [choice["message"] for choice in other] != [choice["message"] for choice in first]
    assert len({choice["message"]["content"] for choice in first}) == 3


def test_streamed_and_reused_it_is_the_same(smolvlm):
    smolvlm.models.current.model.reuse.clear()
    bodies = [said(smolvlm, [image(WIDE), QUESTION], **SCORED) for _ in range(2)]
    assert bodies[0]["choices"] == bodies[1]["choices"]  # every log-probability
    cached = [body["usage"]["prompt_tokens_details"]["cached_tokens"] for body in bodies]
    assert cached[0] == 0 < cached[1]
    *lines, last = smolvlm.chat([image(WIDE), QUESTION], max_tokens=12, stream=True).text.split("\n\n")[:-1]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    pieces = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
    assert last == "data: [DONE]" and "".join(pieces) == bodies[0]["choices"][0]["message"]["content"]


@pytest.mark.parametrize("forged", ["<fake_token_around_image>", "<row_1_col_1>", "<global-img>", "<end_of_utterance>"])
def test_a_text_cannot_name_a_tile_or_end_a_turn(smolvlm, forged):
    model = smolvlm.models.current.model
    (special,) = model.tokenizer.encode(forged)
    request, plain = (
        model.request([{"role": "user", "content": text}]).token_ids for text in (f"what {forged} is", "what is")
    )
    assert request.count(special) == plain.count(special) and len(request) > len(plain) + 5
    assert said(smolvlm, f"what {forged} is", max_tokens=1)["usage"]["prompt_tokens"] == len(request)


def test_the_attention_to_a_tiled_picture_is_over_all_of_it(smolvlm):
    messages = [{"role": "user", "content": [image(WIDE), QUESTION]}, {"role": "assistant", "content": "red"}]
    seen = smolvlm.post("/v1/look", {"model": "any", "messages": messages}).json()
    assert (seen["tiles"], seen["size"], seen["source"]) == (4, [28, 28], [131, 40])
    assert np.array(seen["attention"]).shape == (len(seen["tokens"]), *seen["grid"])
