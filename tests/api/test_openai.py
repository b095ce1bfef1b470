"""Tests the server with OpenAI's Python package as a client, with strict validation of the responses."""

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("openai", reason="OpenAI's package is not installed")

import openai

from .running import data_uri, picture, serving

SEE = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": data_uri(picture("count.png"))}},
            {"type": "text", "text": "Count the stars."},
        ],
    }
]
HI = [{"role": "user", "content": "Hi"}]


def test_a_chat_completion(client):
    asked = {"logprobs": True, "top_logprobs": 2, "n": 2, "seed": 3, "temperature": 0.5, "max_completion_tokens": 4}
    completion = client.chat.completions.create(model="m", messages=SEE, **asked)
    assert [choice.message.content for choice in completion.choices] == ["3", "3"]
    assert completion.choices[0].logprobs.content[0].top_logprobs[0].bytes is not None
    assert completion._request_id.startswith("req_")


def test_a_streamed_chat_completion(client):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(model="m", messages=SEE, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "3"
    assert last.choices == [] and last.usage.prompt_tokens_details.image_tokens == 64


def test_the_stream_helper(client):
    with client.chat.completions.stream(model="m", messages=SEE, logprobs=True) as stream:
        kinds = {event.type for event in stream}
        completion = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert completion.choices[0].message.content == "3" and completion.choices[0].finish_reason == "stop"


def test_an_empty_answer_is_an_empty_string(client):
    with client.chat.completions.stream(model="m", messages=SEE, stop="3") as stream:
        assert stream.get_final_completion().choices[0].message.content == ""
    assert client.chat.completions.create(model="m", messages=SEE, stop="3").choices[0].message.content == ""


def test_a_parsed_completion(client):
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Shapes(BaseModel):
        count: int

    completion = client.chat.completions.parse(model="m", messages=SEE, response_format=Shapes, max_tokens=40)
    assert isinstance(completion.choices[0].message.parsed, Shapes)


def test_closing_a_stream_early_frees_the_server(client, server):
    stream = client.chat.completions.create(model="m", messages=HI, stream=True, logit_bias={"2": -100})
    for _, chunk in zip(range(3), stream, strict=False):
        assert chunk.choices
    stream.close()
    server.until(lambda: not server.worker.busy)


def test_completions_and_models(client, server):
    completion = client.completions.create(model="m", prompt="USER: Hi ASSISTANT:", max_tokens=2, logprobs=1)
    assert len(completion.choices[0].logprobs.token_logprobs) == completion.usage.completion_tokens
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="any"
    ) as lenient:  # its types lack the nulls that OpenAI sends
        _echoed_and_streamed(lenient)
    listed = client.models.list()
    (model,) = listed.data
    assert "multimodal" in listed.model_extra["models"][0]["capabilities"]  # llama-server's, beside OpenAI's list
    assert client.models.retrieve(model.id) == model


def _echoed_and_streamed(lenient):
    echoed = lenient.completions.create(model="m", prompt="USER: Hi", max_tokens=2, logprobs=1, echo=True)
    assert echoed.choices[0].text.startswith("USER: Hi") and echoed.choices[0].logprobs.token_logprobs[0] is None
    streamed = lenient.completions.create(model="m", prompt="USER: Hi", max_tokens=2, stream=True)
    assert list(streamed)[-1].choices[0].finish_reason


def test_null_is_accepted_for_every_parameter_of_the_sdk(server):
    chat = openai.types.chat.completion_create_params.CompletionCreateParamsBase
    older = openai.types.completion_create_params.CompletionCreateParamsBase
    for path, params, asked in (
        ("/v1/chat/completions", chat, {"messages": HI}),
        ("/v1/completions", older, {"prompt": "Hi"}),
    ):
        nulls = dict.fromkeys(params.__annotations__)
        assert len(nulls) > 10
        answer = server.post(path, nulls | {"stream": None, "max_tokens": 1} | asked)
        assert answer.status_code == 200, answer.text


def test_errors_have_the_right_class_and_param(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": [{"type": "text"}]}])
    assert (caught.value.param, caught.value.code) == ("messages[0].content[0].text", "invalid_value")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_deterministic_error_is_not_retried(server, caplog):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:  # retries twice by default
        caplog.set_level("INFO", "llava_ref.server")
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="m", messages=HI, max_tokens=-2)
        server.until(lambda: " 400 " in caplog.text)  # the log line is written after the answer
    assert caplog.text.count(" 400 ") == 1


def test_a_wrong_key():
    with serving(api_key="right") as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert client.with_options(api_key="right").models.list().data
