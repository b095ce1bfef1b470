"""What is refused: the status, the place in the JSON, the code; in OpenAI's form always, and never tried again."""

import json
import re
import socket
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import llava_ref
from llava_ref.api.errors import ApiCode, ApiError, from_library
from llava_ref.api.limits import Limits
from llava_ref.errors import Code, ImageError, LlavaError, NumericsError, PromptError

from ..support.image_files import png
from .running import data_uri, picture, serving

HI = [{"role": "user", "content": "Hi"}]
FIRST = "messages[0].content[0]"


def user(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url):
    return user({"type": "image_url", "image_url": {"url": url}})


BAD = [
    ({}, "messages", "missing_required_parameter"),
    ([], None, "invalid_json"),
    ({"messages": "hi"}, "messages", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": HI * 1025}, "messages", "invalid_value"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_value"),
    ({"messages": [*HI, {"role": "robot", "content": "x"}]}, "messages[1].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
        "messages[0].tool_calls",
        "unsupported_parameter",
    ),
    (user({"type": "audio"}), f"{FIRST}.type", "invalid_value"),
    (user({"type": "text", "text": 3}), f"{FIRST}.text", "invalid_value"),
    (user("text"), FIRST, "invalid_value"),
    (image(""), f"{FIRST}.image_url.url", "invalid_value"),
    (image("!!!"), f"{FIRST}.image_url.url", "invalid_value"),
    (image("/etc/passwd"), f"{FIRST}.image_url.url", "invalid_value"),
    (image("file:///etc/passwd"), f"{FIRST}.image_url.url", "invalid_value"),
    (image("https://example.com/a.png"), f"{FIRST}.image_url.url", "invalid_value"),
    (image(data_uri(b"no picture at all, though long")), f"{FIRST}.image_url.url", "unsupported_image_format"),
    (image(data_uri(picture("count.png")[:300])), f"{FIRST}.image_url.url", "invalid_image"),
    (image(data_uri(png(30_000, 30_000, 8, 2))), f"{FIRST}.image_url.url", "image_too_large"),
    (user({"type": "image", "path": "/etc/passwd"}), f"{FIRST}.path", "invalid_value"),
    ({"messages": HI, "audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
    ({"messages": HI, "tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({"messages": HI, "function_call": {"name": "f"}}, "function_call", "unsupported_value"),
    ({"messages": HI, "modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
    ({"messages": HI, "temperature": "1"}, "temperature", "invalid_value"),
    ({"messages": HI, "temperature": -1}, "temperature", "invalid_value"),
    ({"messages": HI, "max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"messages": HI, "max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ({"messages": HI, "max_tokens": -2}, "max_tokens", "invalid_value"),
    ({"messages": HI, "max_tokens": 2**40 + 0.0}, "max_tokens", "invalid_value"),
    ({"messages": HI, "max_tokens": True}, "max_tokens", "invalid_value"),
    ({"messages": HI, "n": 9}, "n", "invalid_value"),
    ({"messages": HI, "stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"messages": HI, "seed": 2**64}, "seed", "invalid_value"),
    ({"messages": HI, "logit_bias": {"1": 200}}, "logit_bias.1", "invalid_value"),
    ({"messages": HI, "logit_bias": {"999999": 1}}, "logit_bias.999999", "invalid_value"),
    ({"messages": HI, "logit_bias": [[1, 200]]}, "logit_bias", "invalid_value"),
    ({"messages": HI, "logit_bias": [[1, 2], ["word", 2]]}, "logit_bias", "invalid_value"),
    ({"messages": HI, "logit_bias": [[1, 2], [1, 3]]}, "logit_bias", "invalid_value"),
    ({"messages": HI, "logit_bias": [1, 2]}, "logit_bias", "invalid_value"),
    ({"messages": HI, "logit_bias": [[True, 2]]}, "logit_bias", "invalid_value"),
    ({"messages": HI, "logit_bias": [[1, True]]}, "logit_bias", "invalid_value"),
    ({"messages": HI, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"messages": HI, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"messages": HI, "prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "unsupported_value"),
    ({"messages": HI, "stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"messages": HI, "response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
    ({"messages": [{"role": "user", "content": "word " * 5000}]}, "messages", "context_length_exceeded"),
    ({"messages": HI, "model": 3}, "model", "invalid_value"),
]


@pytest.mark.parametrize("body, param, code", BAD, ids=[f"{i}-{row[1]}" for i, row in enumerate(BAD)])
def test_a_bad_request_names_the_json_path(server, body, param, code):
    answer = server.post("/v1/chat/completions", body)
    assert server.error(answer) == (400, param, code)
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["type"] == "invalid_request_error"


LONG = "word " * 5000


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
        ("/v1/completions", {"prompt": LONG}),
        ("/v1/completions", {"prompt": ["a", [300] * 5000]}),
        ("/v1/completions", {"prompt": LONG, "echo": True, "max_tokens": 0, "logprobs": 1}),
        (
            "/v1/look",
            {
                "messages": [
                    *image(data_uri(picture("count.png")))["messages"],
                    {"role": "user", "content": LONG},
                    {"role": "assistant", "content": "3"},
                ]
            },
        ),
    ],
)
def test_a_too_long_prompt_is_refused_in_openais_words(server, path, body):
    """Routers of clients recognise it by them, and send the request to a model with a longer context."""
    answer = server.post(path, body)
    assert server.error(answer)[::2] == (400, "context_length_exceeded")
    said = f"This model's maximum context length is {server.models.current.model.n_context} tokens, "
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "schema, word",
    [
        ({"type": "strin"}, "Invalid type"),
        ({"type": "integer", "multipleOf": 3}, "multipleOf"),
        ({"enum": ["x" * 100] * 300}, "characters"),
        ({"$ref": "http://127.0.0.1/schema"}, "retriev"),
    ],
)
def test_an_unsupported_schema_is_refused(server, schema, word):
    pytest.importorskip("llguidance")
    answer = server.chat("x", response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
    assert server.error(answer) == (400, "response_format.json_schema.schema", "invalid_value")
    assert word in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": NaN}',
        b'{"temperature": 1e999, "messages": []}',
        b"\xff\xfe",
        b'{"a": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"a": [' + b"[]," * 1_000_000 + b"[]]}",
    ],
    ids=["empty", "cut", "NaN", "infinity", "UTF-8", "digits", "brackets", "deep", "many"],
)
def test_invalid_or_excessive_json(server, body):
    answer = server.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    status, _, code = server.error(answer)
    assert status == 400 and code in ("invalid_json", "invalid_value")


def test_64_levels_are_not_too_deep(server):
    value = json.loads('{"a":' * 63 + "1" + "}" * 63)
    assert server.post("/v1/chat/completions", {"messages": HI, "metadata": value, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_content_types_without_a_preflight_are_refused(server, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    answer = server.client.post("/v1/chat/completions", content=b"{}", headers=headers)
    assert server.error(answer) == (415, None, "unsupported_media_type")


def test_paths_and_methods(server):
    assert server.error(server.client.get("/v1/nothing")) == (404, None, "not_found")
    wrong = server.client.get("/v1/chat/completions")
    assert server.error(wrong) == (405, None, "method_not_allowed") and wrong.headers["allow"] == "POST"
    assert server.error(server.client.get("/v1/models/other")) == (404, "model", "model_not_found")


def test_a_model_that_produces_nan(tmp_path):
    from ..support.tiny_pair import VICUNA, Tiny, write_pair

    pair = write_pair(tmp_path, Tiny(template=VICUNA, poisoned="blk.1.ffn_down.weight"))
    with serving(pair=pair) as server:
        answer = server.chat("Hi")
        assert server.error(answer) == (500, None, "model_error") and answer.headers["x-should-retry"] == "false"
        assert "blk.1." in answer.json()["error"]["message"] and str(tmp_path) not in answer.text
        with server.client.stream("POST", "/v1/chat/completions", json={"messages": HI, "stream": True}) as stream:
            last = [line for line in stream.iter_lines() if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "model_error"
        assert server.client.get("/health").status_code == 200


def test_bodies_and_pictures_beyond_the_limits():
    one = {"type": "image_url", "image_url": {"url": data_uri(picture("count.png"))}}
    with serving(limits=Limits(max_body=50_000, max_images=2, max_pixels=60_000)) as server:
        answer = server.chat("x" * 50_000)
        assert server.error(answer) == (413, None, "request_too_large")
        chunked = server.client.post(
            "/v1/chat/completions",
            content=(b"x" * 10_000 for _ in range(6)),
            headers={"content-type": "application/json"},
        )
        assert server.error(chunked) == (413, None, "request_too_large"), "without a length"
        third = "messages[0].content[2].image_url.url"
        assert server.error(server.chat([one, one, one])) == (400, third, "invalid_value")
        second = "messages[0].content[1].image_url.url"
        assert server.error(server.chat([one, one])) == (400, second, "image_too_large")
        assert server.chat([one, {"type": "text", "text": "?"}], max_tokens=1).status_code == 200


def test_the_key():
    with serving(api_key="sesame") as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}, {"x-api-key": "sésame"}):
            encoded = {name: value.encode() for name, value in headers.items()}
            answer = server.client.post("/v1/chat/completions", content=b"not even JSON", headers=encoded)
            assert server.error(answer) == (401, None, "invalid_api_key")
            assert answer.json()["error"]["type"] == "authentication_error"
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/metrics").status_code == server.client.get("/v1/models").status_code == 401
        assert server.client.get("/openapi.json").status_code == 200, "it is the same on every server"
        for headers in ({"authorization": "bearer sesame"}, {"x-api-key": "sesame"}):
            assert server.client.get("/v1/models", headers=headers).status_code == 200


PACKAGE = Path(llava_ref.__file__).parent


def test_every_code_of_the_table_is_raised_somewhere():
    """The other way round, that nothing else is raised, is mypy's to check."""
    sources = [path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "errors.py"]
    defaults = {"invalid_value", LlavaError.code, ImageError.code, NumericsError.code}
    defaults.add("internal_error")  # by `internal`
    assert [
        code for code in get_args(ApiCode) if code not in defaults and not any(f'"{code}"' in s for s in sources)
    ] == []
    assert set(get_args(Code)) < set(get_args(ApiCode))


def test_the_page_knows_no_other_code():
    words = (PACKAGE / "assets" / "words.js").read_text()
    said = set(re.findall(r"^  (\w+): ", words[words.index("const SAID") :].partition("};")[0], re.MULTILINE))
    assert len(said) > 5 and said - {"unreachable", "cut_off", "unread", "foreign_answer"} <= set(get_args(ApiCode))


def test_a_library_s_error_keeps_its_code():
    """Words are for people: the same words with another code are another error."""
    body = {"messages": HI}
    for code in ("invalid_image", "image_too_large", "unsupported_image_format"):
        error = from_library(ImageError("messages[0].content", "file", "odd", code=code), body, None)
        assert (error.status, error.code, error.param) == (400, code, "messages[0].content")
    plain = from_library(PromptError("messages[0]", "content", "not supported here"), body, None)
    assert (plain.code, plain.param) == ("invalid_value", "messages[0].content")
    assert from_library(NumericsError("model", "blk.0.out", "NaN"), body, None).status == 500
    assert ApiError(400, "odd", code="timeout").body()["error"]["code"] == "timeout"


def test_invalid_http_gets_an_error_too(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as sock:
        sock.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: req_" in head
    assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]["code"] == "invalid_http"
