"""Tests that log-probabilities align with the text: joined tokens are the text, offsets their positions."""

import math

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.tracing.distance import log_softmax

from .running import data_uri, events, picture

CONTEXT = "USER: What colour is the circle? ASSISTANT:"
GO_ON = {"logit_bias": {"2": -100}}  # forbids the end token


def complete(server, prompt, **settings):
    body = {"prompt": prompt, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0} | settings
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def agree(choice):
    """Check the log-probability lists of a choice against its text; returns the choice."""
    scores, text = choice["logprobs"], choice["text"]
    tokens, offsets = scores["tokens"], scores["text_offset"]
    assert len({len(column) for column in scores.values()}) == 1
    assert "".join(tokens) == text
    assert offsets == sorted(offsets) and (not offsets or offsets[0] == 0)
    ends = [*offsets[1:], len(text)]
    assert [text[start:end] for start, end in zip(offsets, ends, strict=True)] == tokens
    for token, logprob, top in zip(tokens, scores["token_logprobs"], scores["top_logprobs"], strict=True):
        assert (logprob is None) == (top is None)
        assert top is None or top[token] >= logprob, "the chosen token is included"
    return choice


def harness(choice, context):
    """Return the log-likelihood of the text after the context, as evaluation harnesses compute it from an echo.

    They add up the tokens that begin after the context's last character, without the last token, which was generated.
    They call it greedy if every token is, by its text, the most likely one at its position."""
    scores = choice["logprobs"]
    first = next(i for i, offset in enumerate(scores["text_offset"]) if offset >= len(context))
    places = zip(scores["tokens"][first:-1], scores["top_logprobs"][first:-1], strict=True)
    greedy = all(max(top, key=top.get) == token for token, top in places)
    return sum(scores["token_logprobs"][first:-1]), greedy


def truth(server, context, continuation):
    """Compute the same from the model's logits, and whether each token is the most likely one."""
    server.until(lambda: not server.worker.busy)  # its cancel probe would stop this pass too
    model = server.models.current.model
    ids = model.raw_request(context + continuation).token_ids
    n_context = len(model.raw_request(context).token_ids)
    rows = log_softmax(model.logits(context + continuation)[n_context - 1 : -1])
    picked = rows[np.arange(len(rows)), ids[n_context:]]
    return picked.sum(), bool((rows.argmax(1) == ids[n_context:]).all())


@pytest.mark.parametrize("continuation", [" red", " blue", " The circle is red.", " 3", "\nUSER: é", " é 中"])
@pytest.mark.parametrize("context", [CONTEXT, "a", "Some words,", "中文 é:"])
def test_a_harness_aligns_by_offsets(server, context, continuation):
    (choice,) = complete(server, context + continuation)
    total, greedy = harness(agree(choice), context)
    expected, expected_greedy = truth(server, context, continuation)
    assert total == pytest.approx(expected, abs=1e-4) and greedy == expected_greedy


def test_only_the_models_own_answer_is_greedy(server):
    (answer,) = complete(server, CONTEXT, echo=False, max_tokens=4)
    own = answer["text"]
    assert harness(*[complete(server, CONTEXT + own)[0], CONTEXT])[1]
    assert not harness(*[complete(server, CONTEXT + own + " orange orange")[0], CONTEXT])[1]


PROMPTS = {
    "words": CONTEXT,
    "empty": "",
    "space": " a  b ",
    "characters of several tokens": "é中文🦙",
    "control tokens": "<s>USER: Hi</s>\n",
    "the space sign": "a▁b ▁",
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("settings", [{}, {"stop": ["e", "rc"]}, {"temperature": 4.0, "seed": 3}], ids=str)
def test_tokens_and_offsets_match_the_text(server, prompt, echo, settings):
    asked = {"max_tokens": 24, "echo": echo, "logprobs": 5} | GO_ON | settings
    (choice,) = complete(server, prompt, **asked)
    agree(choice)
    ids = server.models.current.model.raw_request(prompt).token_ids
    (again,) = complete(server, ids, **asked)
    agree(again)
    assert again["logprobs"]["token_logprobs"] == choice["logprobs"]["token_logprobs"], (
        "the same ids, given as text or as ids"
    )
    body = {"prompt": [prompt, ids], "stream": True} | asked
    with server.client.stream("POST", "/v1/completions", json=body) as answer:
        pieces = [chunk["choices"][0] for chunk in events(answer)[:-1]]
    for index, whole in enumerate((choice, again)):
        mine = [piece for piece in pieces if piece["index"] == index]
        assert "".join(piece["text"] for piece in mine) == whole["text"]
        for column in whole["logprobs"]:
            joined = [x for piece in mine if piece["logprobs"] for x in piece["logprobs"][column]]
            assert joined == whole["logprobs"][column]
        assert all("".join(p["logprobs"]["tokens"]) == p["text"] for p in mine if p["logprobs"])


def test_a_completion_continues_its_prompt(server):
    """The leading space of a completion is text, so that prompt and answer, joined, are the model's whole text."""
    (choice,) = complete(server, CONTEXT, max_tokens=2, echo=False)
    assert choice["text"].startswith(" "), "as in llama.cpp and vLLM"
    (echoed,) = complete(server, CONTEXT, max_tokens=2)
    assert echoed["text"] == CONTEXT + choice["text"]
    (alone,) = complete(server, "", max_tokens=1, echo=False, **GO_ON)
    assert not alone["text"].startswith(" "), "no text before it"


def test_the_end_token_has_a_score(server):
    (choice,) = complete(server, CONTEXT, max_tokens=40, logprobs=2)
    assert choice["finish_reason"] == "stop" and choice["logprobs"]["tokens"][-1] == ""
    assert choice["logprobs"]["token_logprobs"][-1] > -1
    agree(choice)


@pytest.mark.parametrize("n", [0, 1, 5, 6, 10, 20])
def test_up_to_twenty_most_likely_tokens(server, n):
    (choice,) = complete(server, CONTEXT, logprobs=n, max_tokens=3, echo=False)
    for top in choice["logprobs"]["top_logprobs"]:
        assert n <= len(top) <= max(n, 1)
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert sum(map(math.exp, top.values())) <= 1 + 1e-9
    answer = server.post("/v1/completions", {"prompt": "a", "logprobs": 21})
    assert server.error(answer) == (400, "logprobs", "invalid_value")


CHATS = {
    "picture": [
        {"type": "image_url", "image_url": {"url": data_uri(picture("count.png"))}},
        {"type": "text", "text": "Count the stars."},
    ],
    "words": "Hello",
}


@pytest.mark.parametrize("content", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 4.0, "seed": 1} | GO_ON,
        {"temperature": 4.0, "seed": 2, "stop": ["a", "e", "\ufffd"]} | GO_ON,
        {"logit_bias": {str(i): 30 for i in range(3, 259)} | {"2": -100}, "temperature": 4.0, "seed": 5},  # bytes
    ],
    ids=["greedy", "random", "stops", "bytes"],
)
def test_the_tokens_of_a_chat_join_to_its_content(server, content, settings):
    asked = {"logprobs": True, "top_logprobs": 3, "max_tokens": 24} | settings
    choice = server.chat(content, **asked).json()["choices"][0]
    entries, text = choice["logprobs"]["content"], choice["message"]["content"]
    assert "".join(entry["token"] for entry in entries) == text
    if "stop" not in settings:
        data = bytes(byte for entry in entries for byte in entry["bytes"])
        assert data.decode("utf-8", "replace") == text
    body = {"messages": [{"role": "user", "content": content}], "stream": True} | asked
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        choices = [chunk["choices"][0] for chunk in events(answer)[:-1]]
    assert "".join(c["delta"].get("content", "") for c in choices) == text
    assert [entry for c in choices if c["logprobs"] for entry in c["logprobs"]["content"]] == entries
    for c in choices:
        if c["logprobs"]:
            assert "".join(entry["token"] for entry in c["logprobs"]["content"]) == c["delta"]["content"]


def test_the_first_token_and_its_alternatives_have_no_leading_space(server):
    choice = server.chat(CHATS["picture"], logprobs=True, top_logprobs=20).json()["choices"][0]
    (entry,) = choice["logprobs"]["content"]
    assert entry["token"] == choice["message"]["content"] == "3" and entry["bytes"] == [ord("3")]
    others = {other["token"]: other for other in entry["top_logprobs"]}
    assert "2" in others and {key: entry[key] for key in ("token", "logprob", "bytes")} in entry["top_logprobs"]
    assert all(bytes(other["bytes"]).decode("utf-8", "replace") == other["token"] for other in others.values())


def test_zero_top_logprobs_do_not_require_logprobs(server):
    assert server.chat("Hi", top_logprobs=0, max_tokens=1).json()["choices"][0]["logprobs"] is None
    refused = server.chat("Hi", top_logprobs=1, max_tokens=1)
    assert server.error(refused) == (400, "top_logprobs", "invalid_value")
