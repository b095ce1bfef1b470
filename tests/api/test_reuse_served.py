"""Tests that positions reused from an earlier request are counted as cached, and do not change an answer."""

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from .running import data_uri, picture

PICTURES = {
    name: {"type": "image_url", "image_url": {"url": data_uri(picture(name))}} for name in ("count.png", "colour.png")
}
QUESTIONS = ("Count the stars.", "What colour is the circle?", "Describe the picture.")
SCORED = {"logprobs": True, "top_logprobs": 3, "max_tokens": 24}


def ask(server, name, question, **settings):
    body = server.chat([PICTURES[name], {"type": "text", "text": question}], **SCORED, **settings).json()
    return body["choices"], body["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_answers_are_the_same_with_and_without_reuse(server):
    model = server.models.current.model
    kept, model.reuse = model.reuse, None
    plain = {(name, question): ask(server, name, question) for name in PICTURES for question in QUESTIONS}
    assert all(cached == 0 for _, cached in plain.values())
    model.reuse = kept
    kept.clear()
    saved = []
    for _ in range(2):
        for (name, question), (choices, _) in plain.items():
            reused, cached = ask(server, name, question)
            assert reused == choices  # every log-probability of every token
            saved.append(cached)
    assert saved[0] == 0 and min(saved[1:3]) > 64 and min(saved[6:]) >= 64


def test_completions_count_cached_tokens(server):
    server.models.current.model.reuse.clear()
    body = {"prompt": [7] * 600, "n": 2, "max_tokens": 1, "temperature": 0}
    answers = [server.post("/v1/completions", body).json() for _ in range(2)]
    assert [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers] == [0, 512]
    assert all(answer["usage"]["prompt_tokens"] == 600 for answer in answers)
    assert answers[0]["choices"] == answers[1]["choices"]


def test_a_disconnect_does_not_spoil_the_cache(server):
    model = server.models.current.model
    model.reuse.clear()
    expected, _ = ask(server, "count.png", QUESTIONS[2])
    body = {
        "messages": [{"role": "user", "content": [PICTURES["colour.png"], {"type": "text", "text": "Describe it."}]}]
    }
    with server.client.stream(
        "POST", "/v1/chat/completions", json=body | {"stream": True, "max_tokens": 400}
    ) as answer:
        next(answer.iter_lines())
    assert ask(server, "count.png", QUESTIONS[2])[0] == expected
