"""Answers that clients ask to have recorded: each record is replayed by the command, and no client chooses a path."""

import errno
import json

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.api import recorder
from llava_ref.cli import main
from llava_ref.records.record import read_record

from .running import data_uri, events, picture, serving

CHAT = "/v1/chat/completions"
SEEN = {"type": "image_url", "image_url": {"url": data_uri(picture("colour.png"))}}
QUESTION = [{"role": "user", "content": [SEEN, {"type": "text", "text": "What colour is the circle?"}]}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "integer"}}}}}
REQUESTS = [
    (CHAT, {"messages": QUESTION, "tools": [TOOL], "tool_choice": "required", "max_tokens": 30}),
    (CHAT, {"messages": QUESTION, "temperature": 1.3, "n": 2, "max_tokens": 5}),
    (CHAT, {"messages": [*QUESTION, {"role": "assistant", "content": "It is"}], "stream": True, "max_tokens": 4}),
    (CHAT, {"messages": QUESTION, "response_format": {"type": "json_object", "schema": SCHEMA}, "max_tokens": 12}),
    ("/v1/completions", {"prompt": ["one", [1, 30, 31]], "max_tokens": 4, "logit_bias": {"40": 3}, "stop": "zz"}),
    ("/v1/responses", {"input": "Hi", "instructions": "Be short.", "max_output_tokens": 4, "temperature": 0.9}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def server(folder):
    with serving(records=folder) as running:
        yield running


def ids(server, path, body):
    """Ask for a record; return the id of the response."""
    answer = server.post(path, body | {"record": True})
    assert answer.status_code == 200, answer.text
    return (events(answer)[0] if body.get("stream") else answer.json())["id"]


@pytest.mark.parametrize("path, body", REQUESTS)
def test_every_record_is_replayed(path, body, server, folder, capsys):
    id = ids(server, path, body)
    files = sorted(folder.glob(f"{id}-*.json"))
    assert [file.name for file in files] == [
        f"{id}-{i}.json" for i in range(2 if "n" in body or "prompt" in body else 1)
    ]
    for file in files:
        assert main(["replay", str(file), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["same"] and found["settings"] == {} and found["arrays"] > 50


def test_the_record_is_the_answer(server, folder):
    answer = server.chat(QUESTION[0]["content"], record=True, max_tokens=6, logprobs=True).json()
    record = read_record(folder / f"{answer['id']}-0.json")
    assert record.answer.text == answer["choices"][0]["message"]["content"]
    assert record.prompt_ids.count(-1) == 64 and len(record.prompt_ids) == answer["usage"]["prompt_tokens"]
    assert record.answer.finish_reason == answer["choices"][0]["finish_reason"]
    assert (
        answer["choices"][0]["message"]
        == server.chat(QUESTION[0]["content"], max_tokens=6).json()["choices"][0]["message"]
    )
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "all of it is computed"


def test_nothing_is_recorded_unasked_or_unpermitted(server, folder):
    before = len(list(folder.iterdir()))
    for wanted in (None, False):
        assert server.chat("Hi", max_tokens=2, record=wanted).status_code == 200
    assert len(list(folder.iterdir())) == before
    with serving() as closed:
        for path, body in REQUESTS:
            refused = closed.error(closed.post(path, body | {"record": True}))
            assert refused == (403, "record", "record_not_allowed")
        assert closed.chat("Hi", max_tokens=2, record=False).status_code == 200


def test_no_client_chooses_a_path(server, folder):
    for value in ("/tmp/x.json", "../x", 1, ["x"]):
        assert server.error(server.chat("Hi", record=value)) == (400, "record", "invalid_value")
    id = ids(server, CHAT, {"messages": [{"role": "user", "content": "Hi"}], "model": "../../x", "max_tokens": 2})
    assert (folder / f"{id}-0.json").is_file()
    body = {"prompt": "x", "max_tokens": 0, "echo": True, "record": True}
    assert server.error(server.post("/v1/completions", body)) == (400, "record", "unsupported_value")


def test_a_full_folder_and_a_full_disk(server, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "MAX_RECORDS", 1)
        assert server.error(server.chat("Hi", record=True)) == (403, "record", "record_not_allowed")

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(recorder, "whole_file", full)
    assert server.error(server.chat("Hi", record=True, max_tokens=2)) == (500, "record", "record_failed")
    last = events(server.chat("Hi", record=True, max_tokens=2, stream=True))[-1]
    assert last["error"]["code"] == "record_failed" and str(folder) not in json.dumps(last)


def test_the_operator_names_a_folder(capsys, tmp_path):
    assert main(["serve", "--record-dir", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "--record-dir: " in capsys.readouterr().err
