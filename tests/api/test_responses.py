"""Tests OpenAI's Responses API: with its Python package under strict validation, and the wire itself."""

import json

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("openai", reason="OpenAI's package is not installed")

import openai

from llava_ref.api.errors import ApiError

from .running import data_uri, picture

SEE = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": data_uri(picture("count.png")), "detail": "auto"},
            {"type": "input_text", "text": "Count the stars."},
        ],
    }
]
ORDER = (
    "created in_progress output_item.added content_part.added output_text.delta output_text.done content_part.done "
    "output_item.done completed"
).split()


def test_a_response(client):
    response = client.responses.create(model="m", input=SEE, metadata={"a": "b"}, store=True)
    assert response.output_text == "3" and response.status == "completed" and response.model == "m"
    assert response.metadata == {"a": "b"} and response.to_dict()["store"] is False
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 64
    assert client.responses.input_tokens.count(model="m", input=SEE).input_tokens == usage.input_tokens


def test_it_equals_the_chat_with_the_same_words(client):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    same = client.chat.completions.create(model="m", messages=chat, max_tokens=5)
    response = client.responses.create(model="m", instructions="Be brief.", input="Hi", max_output_tokens=5)
    assert response.output_text == same.choices[0].message.content
    assert response.usage.input_tokens == same.usage.prompt_tokens


def test_an_answer_is_sent_back(client):
    first = client.responses.create(model="m", input=SEE)
    more = [*SEE, *[item.to_dict() for item in first.output], {"role": "user", "content": "Count the stars."}]
    second = client.responses.create(model="m", input=more)
    assert "warnings" not in second.to_dict() and second.usage.input_tokens > first.usage.input_tokens


def test_the_order_of_events(client):
    events = list(client.responses.create(model="m", input=SEE, stream=True))
    assert [event.type for event in events] == [f"response.{name}" for name in ORDER]
    assert [event.sequence_number for event in events] == list(range(len(ORDER)))
    assert events[4].delta == events[5].text == events[-1].response.output_text == "3"


def test_the_stream_helper(client):
    with client.responses.stream(model="m", input=SEE) as stream:
        assert "response.output_text.delta" in {event.type for event in stream}
        assert stream.get_final_response().output_text == "3"


def test_events_have_names_and_no_end_mark(server):
    answer = server.post("/v1/responses", {"input": SEE, "stream": True})
    lines = [line for line in answer.text.splitlines() if line and not line.startswith(":")]
    names, data = lines[::2], [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert names == [f"event: {event['type']}" for event in data] and "[DONE]" not in answer.text


def test_a_long_answer_is_incomplete(client):
    *_, last = client.responses.create(model="m", input="Hi", max_output_tokens=1, stream=True)
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output[0].status == "incomplete"


def test_json(client):
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Stars(BaseModel):
        count: int

    response = client.responses.parse(model="m", input=SEE, text_format=Stars, max_output_tokens=40)
    assert isinstance(response.output_parsed, Stars)


def test_an_error_of_the_model_ends_the_stream_as_failed(server, monkeypatch):
    def broken(*_):
        raise ApiError(500, "no numbers", code="model_error")
        yield

    monkeypatch.setattr("llava_ref.api.response_events.answer_pieces", broken)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", _strict_response_validation=True) as client:
        *_, last = client.responses.create(model="m", input="Hi", stream=True)
    assert last.type == "response.failed" and last.sequence_number == 4
    assert (last.response.status, last.response.error.code) == ("failed", "server_error")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": "Hi", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "Hi", "conversation": {"id": "c"}}, "conversation"),
        ({"input": "Hi", "background": True}, "background"),
        ({"input": "Hi", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "Hi", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "Hi", "temperature": -1}, "temperature"),
        ({"input": "Hi", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ],
)
def test_errors_name_the_place(server, body, param):
    status, found, _ = server.error(server.post("/v1/responses", body))
    assert status == 400 and found.startswith(param)


def test_what_has_no_effect_is_told(server):
    quiet = {
        "include": [],
        "reasoning": None,
        "truncation": "disabled",
        "user": "u",
        "tools": [],
        "tool_choice": "auto",
    }
    assert "warnings" not in server.post("/v1/responses", {"input": SEE} | quiet).json()
    loud = server.post("/v1/responses", {"input": SEE, "truncation": "auto", "text": {"verbosity": "low"}}).json()
    assert [warning.partition(":")[0] for warning in loud["warnings"]] == ["truncation", "text.verbosity"]
