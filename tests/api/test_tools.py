"""Functions that the model may call: with OpenAI's Python package under strict validation, and the wire itself."""

import json

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("openai", reason="OpenAI's package is not installed")
pytest.importorskip("llguidance", reason="the server extra is not installed")

from .running import data_uri, picture

PARAMETERS = {
    "type": "object",
    "properties": {"shape": {"enum": ["star", "circle"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["shape", "n"],
    "additionalProperties": False,
}
COUNT = {
    "type": "function",
    "function": {"name": "count", "description": "Counts.", "parameters": PARAMETERS, "strict": True},
}
LOOK = {"type": "function", "function": {"name": "look"}}
SEE = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": data_uri(picture("count.png"))}},
            {"type": "text", "text": "Count the stars."},
        ],
    }
]
NAMED = {"type": "function", "function": {"name": "count"}}


def ask(client, **settings):
    settings = {"model": "m", "messages": SEE, "tools": [COUNT, LOOK], "max_tokens": 80} | settings
    return client.chat.completions.create(**settings)


def tokens_of(client, text):
    return client._client.post(f"{client.base_url}../tokenize", json={"content": text}).json()["tokens"]


def the_call(message):
    (call,) = message.tool_calls
    return call


def test_a_named_function_is_called(client):
    completion = ask(client, tool_choice=NAMED, parallel_tool_calls=False, n=2)
    for choice in completion.choices:
        call = the_call(choice.message)
        assert choice.finish_reason == "tool_calls" and choice.message.content is None and call.type == "function"
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "count" and set(arguments) == {"shape", "n"}
        assert arguments["shape"] in ("star", "circle") and arguments["n"] in range(10)
    first, second = (the_call(choice.message) for choice in completion.choices)
    assert first.id != second.id and first.function == second.function
    assert "system message describes them" in completion.to_dict()["warnings"][0]


def test_a_streamed_call_equals_the_whole_one(client):
    whole = the_call(ask(client, tool_choice=NAMED, parallel_tool_calls=False).choices[0].message)
    chunks = list(ask(client, tool_choice=NAMED, parallel_tool_calls=False, stream=True))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    head, *rest = deltas
    assert head.id and head.function.name == "count" and head.function.arguments == "" and len(rest) > 1
    assert all(call.id is None and call.function.name is None and call.index == 0 for call in rest)
    assert "".join(call.function.arguments for call in rest) == whole.function.arguments
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_stream_helper_parses_arguments(client):
    with client.chat.completions.stream(
        model="m", messages=SEE, tools=[COUNT], tool_choice="required", parallel_tool_calls=False, max_tokens=80
    ) as stream:
        kinds = {event.type for event in stream}
        call = the_call(stream.get_final_completion().choices[0].message)
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert call.function.parsed_arguments == json.loads(call.function.arguments)


def test_the_functions_are_a_part_of_the_prompt(client):
    plain = client.chat.completions.create(model="m", messages=SEE, max_tokens=1)
    assert ask(client, max_tokens=1).usage.prompt_tokens > plain.usage.prompt_tokens + 50
    none = ask(client, max_tokens=1, tool_choice="none")
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens and none.choices[0].message.content == "3"


def test_an_answer_may_have_several_calls(client):
    """Behind a call the likeliest token is made the line feed that leads to another."""
    bias = {str(token): 100 for token in tokens_of(client, "}\n{")[-2:-1]}
    settings = {"tools": [COUNT], "tool_choice": "required", "logit_bias": bias, "max_tokens": 160}
    first, *more = ask(client, **settings).choices[0].message.tool_calls
    assert more and len({call.id for call in (first, *more)}) == len(more) + 1
    assert set(json.loads(first.function.arguments)) == {"shape", "n"}
    assert len(ask(client, **settings, parallel_tool_calls=False).choices[0].message.tool_calls) == 1


def test_the_model_may_answer_in_words(client):
    choice = ask(client, tool_choice="auto").choices[0]
    assert choice.message.tool_calls is None and choice.message.content and choice.finish_reason == "stop"


def test_auto_lets_the_model_call(client):
    """The answer's first token is pushed to the brace that begins a call; from there on the grammar leads."""
    brace = tokens_of(client, "{")[-1]
    choice = ask(client, tools=[COUNT], logit_bias={str(brace): 100}, parallel_tool_calls=False).choices[0]
    assert the_call(choice.message).function.name == "count" and choice.finish_reason == "tool_calls"


def test_a_conversation_with_a_result(client):
    first = ask(client, tool_choice=NAMED, parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "3"}
    second = ask(client, messages=[*SEE, first.to_dict(), result], max_tokens=4)
    assert second.usage.prompt_tokens > ask(client, max_tokens=1).usage.prompt_tokens
    assert second.choices[0].message.content is not None


def test_an_answer_is_cut_where_it_is(client):
    """In the arguments of a call, whose JSON is then not whole; in front of them the words are the answer's text."""
    full = the_call(ask(client, tool_choice=NAMED, parallel_tool_calls=False).choices[0].message).function.arguments
    cut = ask(client, tool_choice=NAMED, parallel_tool_calls=False, stop="shape").choices[0]
    arguments = the_call(cut.message).function.arguments
    assert cut.finish_reason == "stop" and full.startswith(arguments) and arguments != full
    head = ask(client, tool_choice=NAMED, max_tokens=3).choices[0]
    assert head.finish_reason == "length" and head.message.tool_calls is None
    assert '{"name": "count"'.startswith(head.message.content)


def test_json_or_a_call(client):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {
        "stars": {"type": "integer", "maximum": 9}}, "required": ["stars"]}}}  # fmt: skip
    message = ask(client, response_format=form, parallel_tool_calls=False).choices[0].message
    arguments = json.loads(message.content) if message.content else json.loads(the_call(message).function.arguments)
    assert set(arguments) in ({"stars"}, {"shape", "n"}, set())


@pytest.mark.parametrize(
    "settings, param",
    [
        ({"tools": [LOOK, LOOK]}, "tools[1].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
         "tools[0].function.parameters.type"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "properties": {"a": {"type": "number", "multipleOf": 2}}}}}]}, "tools[0].function.parameters"),
        ({"tools": [LOOK] * 129}, "tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice.function.name"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"functions": [{"name": "f"}], "tools": None}, "functions"),
        ({"messages": [*SEE, {"role": "tool", "tool_call_id": "no", "content": "7"}]}, "messages[1].tool_call_id"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(server, settings, param):
    body = {"model": "m", "messages": SEE, "tools": [LOOK], "max_tokens": 4} | settings
    answer = server.post("/v1/chat/completions", body)
    status, found, _ = server.error(answer)
    assert status == 400 and found == param


def test_a_conversation_that_ends_in_a_call_waits_for_its_result(server):
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    body = {"model": "m", "messages": [*SEE, {"role": "assistant", "tool_calls": [call]}], "tools": [LOOK]}
    status, param, _ = server.error(server.post("/v1/chat/completions", body))
    assert (status, param) == (400, "messages[1].tool_calls")


def test_a_call_without_text_and_with_an_empty_result_is_kept(server):
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": ""}}
    talk = [
        *SEE,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": ""},
    ]
    answer = server.post("/v1/chat/completions", {"model": "m", "messages": talk, "max_tokens": 2})
    assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"]
