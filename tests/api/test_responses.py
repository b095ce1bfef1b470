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


COUNT = {
    "type": "function",
    "name": "count",
    "description": "Counts.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"shape": {"enum": ["star", "circle"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["shape", "n"],
        "additionalProperties": False,
    },
}
CALLED = {"tools": [COUNT], "tool_choice": {"type": "function", "name": "count"}, "parallel_tool_calls": False}


def test_a_function_is_called_and_its_result_sent_back(client):
    pytest.importorskip("llguidance")
    response = client.responses.create(model="m", input=SEE, max_output_tokens=80, **CALLED)
    (call,) = response.output
    arguments = json.loads(call.arguments)
    assert (call.type, call.name, call.status) == ("function_call", "count", "completed") and arguments["n"] in range(
        10
    )
    assert response.tools[0].name == "count" and response.tool_choice.name == "count"
    talk = [*SEE, call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": "3"}]
    second = client.responses.create(model="m", input=talk, tools=[COUNT], max_output_tokens=4)
    assert second.output_text and second.usage.input_tokens > response.usage.input_tokens
    counted = client.responses.input_tokens.count(model="m", input=talk, tools=[COUNT]).input_tokens
    assert counted == second.usage.input_tokens
    parts = [{"type": "input_text", "text": "3"}]
    same = client.responses.create(model="m", input=[*talk[:-1], talk[-1] | {"output": parts}], tools=[COUNT])
    assert same.usage.input_tokens == counted and not any("input" in w for w in same.to_dict()["warnings"])


def test_the_events_of_a_call(client):
    pytest.importorskip("llguidance")
    events = list(client.responses.create(model="m", input=SEE, max_output_tokens=80, stream=True, **CALLED))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("function_call_arguments.delta")
    assert kinds == ["created", "in_progress", "output_item.added", *["function_call_arguments.delta"] * deltas,
                     "function_call_arguments.done", "output_item.done", "completed"]  # fmt: skip
    (call,) = events[-1].response.output
    joined = "".join(event.delta for event in events if event.type.endswith("arguments.delta"))
    assert deltas > 1 and joined == call.arguments == events[-3].arguments and events[2].item.arguments == ""
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_call_that_is_cut_is_incomplete(client):
    pytest.importorskip("llguidance")
    response = client.responses.create(model="m", input=SEE, max_output_tokens=34, **CALLED)
    assert response.status == response.output[0].status == "incomplete" and response.output[0].type == "function_call"


def test_calls_stand_beside_the_words_before_them(server):
    """Two calls and the message in front of them are one message of the assistant."""
    calls = [{"type": "function_call", "call_id": f"c{i}", "name": "look", "arguments": "{}"} for i in range(2)]
    results = [{"type": "function_call_output", "call_id": f"c{i}", "output": "yes"} for i in range(2)]
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I look."}, *calls, *results]
    chat = [*talk[:2], *({"role": "tool", "tool_call_id": f"c{i}", "content": "yes"} for i in range(2))]
    made = [{"id": f"c{i}", "type": "function", "function": {"name": "look", "arguments": "{}"}} for i in range(2)]
    chat[1] = chat[1] | {"tool_calls": made}
    counted = server.post("/v1/responses/input_tokens", {"input": talk}).json()["input_tokens"]
    answer = server.post("/v1/chat/completions", {"messages": chat, "max_tokens": 1}).json()
    assert counted == answer["usage"]["prompt_tokens"]


def test_an_error_of_the_model_ends_the_stream_as_failed(server, monkeypatch):
    def broken(*_):
        raise ApiError(500, "no numbers", code="model_error")
        yield

    monkeypatch.setattr("llava_ref.api.response_events.said_pieces", broken)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", _strict_response_validation=True) as client:
        *_, last = client.responses.create(model="m", input="Hi", stream=True)
    assert last.type == "response.failed" and last.sequence_number == 2
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
        ({"input": "Hi", "tools": [COUNT, COUNT]}, "tools[1].name"),
        ({"input": "Hi", "tools": [COUNT], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name"),
        (
            {"input": [*SEE, {"type": "function_call", "call_id": "", "name": "f", "arguments": "{}"}]},
            "input[1].call_id",
        ),
        (
            {"input": [*SEE, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "[]"}]},
            "input[1].arguments",
        ),
        ({"input": [*SEE, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}, "input[1]"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "3"}]}, "input[0].call_id"),
        (
            {
                "input": [
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": [{"type": "x"}]},
                ]
            },
            "input[1].output[0]",
        ),
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
