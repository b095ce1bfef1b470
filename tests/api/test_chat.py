"""Tests chat completions: every form of a request, and the fields of the response."""

import base64
import json
import math

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from .running import data_uri, events, picture

COUNT, COLOUR = picture("count.png"), picture("colour.png")
HOW_MANY = {"type": "text", "text": "Count the stars."}
WHICH = {"type": "text", "text": "What colour is the circle?"}
URL = data_uri(COUNT)
GO_ON = {"logit_bias": {"2": -100}}  # forbids the end token
B64 = base64.b64encode(COUNT).decode()


def image(url=URL, **more):
    return {"type": "image_url", "image_url": {"url": url} | more}


def test_the_fields_of_a_response(server):
    reply = server.chat([image(), HOW_MANY], model="gpt-4-vision-preview")
    body = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion"
    assert body["model"] == "gpt-4-vision-preview" and body["system_fingerprint"].startswith("fp_")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "3", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    details = body["usage"]["prompt_tokens_details"]
    assert details["image_tokens"] == 64 and details["text_tokens"] == body["usage"]["prompt_tokens"] - 64
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    assert body["timings"]["prefill_s"] > 0


SHAPES = {
    "object": image(),
    "string": {"type": "image_url", "image_url": URL},
    "raw base64": image(B64),
    "url-safe, unpadded": image(base64.urlsafe_b64encode(COUNT).decode().rstrip("=")),
    "lines": image("\n".join(B64[i : i + 76] for i in range(0, len(B64), 76))),
    "wrong label": image(data_uri(COUNT, "image/jpeg")),
    "no image label": image(data_uri(COUNT, "text/plain;charset=utf-8")),
    "detail": image(detail="high"),
    "input_image": {"type": "input_image", "image_url": URL},
    "Hugging Face": {"type": "image", "url": URL},
    "Anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
}


@pytest.mark.parametrize("part", SHAPES.values(), ids=SHAPES)
def test_every_form_of_an_image_part(server, part):
    assert server.chat([part, HOW_MANY]).json()["choices"][0]["message"]["content"] == "3"


def test_a_detail_without_effect_gives_a_warning(server):
    answers = [server.chat([image(detail=detail), HOW_MANY]).json() for detail in ("auto", None, "low", "x\n" * 50)]
    assert ["warnings" in answer for answer in answers] == [False, False, True, True]
    (warning,) = answers[2]["warnings"]
    assert warning.startswith("messages[0].content[0].image_url.url: detail 'low' has no effect")
    assert "\n" not in answers[3]["warnings"][0] and len(answers[3]["warnings"][0]) < 200


def test_pictures_after_the_text_and_several_pictures(server):
    assert server.chat([HOW_MANY, image()]).json()["usage"]["prompt_tokens_details"]["image_tokens"] == 64
    several = server.chat([image(), HOW_MANY, image(data_uri(COLOUR)), image()]).json()
    assert several["usage"]["prompt_tokens_details"]["image_tokens"] == 192


def test_several_turns_with_a_picture_in_the_first(server):
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [image(), HOW_MANY]},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "What colour is the circle?"},
    ]
    usage = server.post("/v1/chat/completions", {"messages": turns, "max_tokens": 3}).json()["usage"]
    assert usage["prompt_tokens_details"]["image_tokens"] == 64


def test_a_stream_has_chunks_in_the_order_that_clients_check(server):
    body = {"messages": [{"role": "user", "content": [image(), HOW_MANY]}], "stream": True, "model": "m"}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-cache"
        *chunks, done = events(answer)
    assert done == "[DONE]"
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk" and "usage" not in chunks[0]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "3"
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}


@pytest.mark.parametrize(
    "asked", [{}, {"n": 2}, {"logprobs": True}, {"stop": "3"}, {"response_format": {"type": "text"}}]
)
def test_each_answer_of_a_stream_begins_with_its_role_and_empty_content(server, asked):
    """OpenAI does the same: a client that concatenates the content then gets a string even for an empty answer."""
    body = {"messages": [{"role": "user", "content": [image(), HOW_MANY]}], "stream": True} | asked
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        choices = [chunk["choices"][0] for chunk in events(answer)[:-1]]
    for index in range(asked.get("n", 1)):
        mine = [choice for choice in choices if choice["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert mine[0]["finish_reason"] is None and mine[-1]["finish_reason"] == "stop"
        assert "".join(c["delta"].get("content", "") for c in mine) == ("" if "stop" in asked else "3")


def test_usage_comes_last_and_only_on_request(server):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "n": 2, "stream": True} | GO_ON
    body["stream_options"] = {"include_usage": True}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        *chunks, last, done = events(answer)
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 4
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0, 1}


def test_a_streamed_answer_equals_the_whole_one(server):
    asked = {"temperature": 1.5, "seed": 5, "max_tokens": 40, "logprobs": True, "top_logprobs": 2, "stop": ["left"]}
    whole = server.chat([image(), WHICH], **asked).json()["choices"][0]
    body = {"messages": [{"role": "user", "content": [image(), WHICH]}], "stream": True} | asked
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        choices = [chunk["choices"][0] for chunk in events(answer)[:-1]]
    assert "".join(c["delta"].get("content", "") for c in choices) == whole["message"]["content"]
    assert [e for c in choices if c["logprobs"] for e in c["logprobs"]["content"]] == whole["logprobs"]["content"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]


def test_logprobs(server):
    asked = {"logprobs": True, "top_logprobs": 3, "max_tokens": 5}
    content = server.chat([image(), HOW_MANY], **asked).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 1, "the end token is not listed"
    (entry,) = content
    assert entry["token"].strip() == "3" and bytes(entry["bytes"]).decode() == entry["token"]
    assert entry["top_logprobs"][0] == {key: entry[key] for key in ("token", "logprob", "bytes")}, (
        "greedy: the most likely token"
    )
    top = [other["logprob"] for other in entry["top_logprobs"]]
    assert len(top) == 3 and top == sorted(top, reverse=True) and sum(map(math.exp, top)) <= 1 + 1e-9


def test_choices_differ_by_seed_and_are_repeatable(server):
    asked = {"temperature": 3.0, "seed": 11, "max_tokens": 12, "n": 3} | GO_ON
    first = [c["message"]["content"] for c in server.chat("Hello", **asked).json()["choices"]]
    assert len(set(first)) == 3
    assert first == [c["message"]["content"] for c in server.chat("Hello", **asked).json()["choices"]]
    alone = server.chat("Hello", **asked | {"seed": 12, "n": 1}).json()["choices"][0]["message"]["content"]
    assert alone == first[1], "answer i uses seed + i"


def test_max_tokens_and_stop_end_an_answer(server):
    one = server.chat(
        [image(), {"type": "text", "text": "Describe the picture."}], max_tokens=50, max_completion_tokens=1
    )
    assert one.json()["usage"]["completion_tokens"] == 1, "max_completion_tokens takes precedence over max_tokens"
    assert one.json()["choices"][0]["finish_reason"] == "length"
    stopped = server.chat([image(), {"type": "text", "text": "Describe the picture."}], stop="orange").json()[
        "choices"
    ][0]
    assert "orange" not in stopped["message"]["content"] and stopped["finish_reason"] == "stop"


def test_logit_bias(server):
    ids = server.post("/tokenize", {"content": "3"}).json()["tokens"]
    biased = server.chat([image(), HOW_MANY], logit_bias={str(i): -100 for i in ids}).json()
    assert biased["choices"][0]["message"]["content"] != "3"


def test_prompt_logprobs_score_a_given_answer(server):
    def total(answer):
        turns = [
            {"role": "user", "content": [image(), HOW_MANY]},
            {"role": "assistant", "content": answer},
        ]
        body = {"messages": turns, "prompt_logprobs": 1, "max_tokens": 1}
        scores = server.post("/v1/chat/completions", body).json()["prompt_logprobs"]
        assert scores[0] is None and scores.count(None) == 65, "the first position and 64 of the picture"
        (given,) = [e for entry in scores if entry for e in entry.values() if e["decoded_token"].strip() == answer]
        return given["logprob"]

    assert total("3") > -0.5 and total("3") > 5 + total("4")


SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}, "colour": {"enum": ["red", "orange"]}},
    "required": ["count", "colour"],
    "additionalProperties": False,
}


def test_json_schema(server):
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "shapes", "schema": SCHEMA, "strict": True}}
    for temperature in (0, 2):
        choice = server.chat([image(), HOW_MANY], response_format=form, temperature=temperature, seed=1).json()[
            "choices"
        ][0]
        answer = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop" and set(answer) == {"count", "colour"} and 0 <= answer["count"] <= 9


def test_json_object_begins_with_a_brace(server):
    pytest.importorskip("llguidance")
    content = server.chat("Hi", response_format={"type": "json_object"}, max_tokens=5).json()
    assert content["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    "path",
    [
        "/chat/completions",
        "/v1/openai/chat/completions",
        "/v1/inference/chat/completions",
        "/inferences/llamacpp/chat_completion",
        "/inferences/LlamaCPP/Chat_Completion",
    ],
)
def test_chat_answers_on_all_its_paths(server, path):
    body = {"messages": [{"role": "user", "content": [image(), HOW_MANY]}]}
    assert server.post(path, body).json()["choices"][0]["message"]["content"] == "3"


HARMLESS = {
    "user": "u1",
    "store": False,
    "top_logprobs": 0,
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "modalities": ["text"],
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "parallel_tool_calls": True,
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "reasoning_effort": "none",
    "verbosity": "medium",
    "top_k": -1,
    "seed": -1,
    "temperature": None,
    "stop": None,
    "logit_bias": None,
    "n": None,
    "stream": None,
}


def test_parameters_without_effect_are_accepted(server):
    assert server.chat([image(), HOW_MANY], **HARMLESS).json()["choices"][0]["message"]["content"] == "3"
