"""Tests fields of messages without effect, and how the prompt of a conversation ends."""

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import llava_ref

from .running import data_uri, picture
from .test_parameters import CHAT, HI, ask, warnings

ADA = {"role": "user", "content": "Hi", "name": "ada"}
THOUGHT = {"role": "assistant", "content": "3", "reasoning_content": "one, two", "refusal": None, "tool_calls": []}


def test_fields_of_messages(server, strict):
    answer = ask(server, CHAT, messages=[ADA, THOUGHT, *HI])
    assert warnings(answer) == [
        "messages[0].name: has no effect here",
        "messages[1].reasoning_content: has no effect here",
    ]
    assert strict.error(ask(strict, CHAT, messages=[ADA])) == (400, "messages[0].name", "unsupported_parameter")
    assert warnings(ask(strict, CHAT, messages=[THOUGHT | {"reasoning_content": ""}, *HI])) == []
    look = {
        "messages": [ADA | {"content": [{"type": "image_url", "image_url": data_uri(picture("count.png"))}]}, THOUGHT]
    }
    assert len(server.post("/v1/look", look).json()["warnings"]) == 2
    model = llava_ref.load(*llava_ref.embedded())
    assert model.chat([ADA], max_tokens=1).warnings == ("messages[0].name: has no effect here",)


START = [{"role": "user", "content": "How many are there?"}, {"role": "assistant", "content": "There are"}]


def prompt_of(server, **asked):
    """Return the prompt as text, from the answer's `prompt_logprobs`, and the answer."""
    answer = ask(server, CHAT, prompt_logprobs=0, **asked).json()
    return "".join(next(iter(e.values()))["decoded_token"] for e in answer["prompt_logprobs"][1:]), answer


def test_a_last_assistant_message_is_continued(server):
    prompt, answer = prompt_of(server, messages=START, max_tokens=8)
    assert prompt.endswith("ASSISTANT: There are")
    (note,) = answer["warnings"]
    assert note.startswith("messages[1]: the answer continues this message")
    asked = {"continue_final_message": True, "add_generation_prompt": False}
    again, told = prompt_of(server, messages=START, max_tokens=8, **asked)
    assert again == prompt and "warnings" not in told and told["choices"] == answer["choices"]
    only = prompt_of(server, messages=START, max_tokens=8, continue_final_message=True)[1]
    assert only["choices"] == answer["choices"]
    last = server.post("/tokenize", {"content": "a red"}).json()["tokens"][-1]
    biased = ask(server, CHAT, messages=START, logit_bias=[[last, 100]])
    assert biased.json()["choices"][0]["message"]["content"] == " red", "its leading space is kept"


def test_a_last_assistant_message_is_followed_by_a_new_one_on_request(server):
    prompt, answer = prompt_of(server, messages=START, add_generation_prompt=True)
    assert prompt.endswith("ASSISTANT: There are</s>ASSISTANT:") and "warnings" not in answer
    assert prompt_of(server, messages=START, continue_final_message=False)[0] == prompt
    closed = prompt_of(server, messages=START, add_generation_prompt=False)[0]
    assert closed.endswith("There are</s>")
    bad = ask(server, CHAT, messages=START, add_generation_prompt=True, continue_final_message=True)
    assert server.error(bad)[:2] == (400, "continue_final_message")


def test_an_empty_last_assistant_message_is_ignored(server):
    for content in (None, "", " \n", []):
        prompt, answer = prompt_of(server, messages=[START[0], {"role": "assistant", "content": content}])
        assert prompt == prompt_of(server, messages=START[:1])[0] and "warnings" not in answer
