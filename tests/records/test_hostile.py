"""A record from anybody gives one clear line: what is wrong with it, and where."""

import json
import os

import pytest

from llava_ref.records import record as module


def deleted(name):
    return lambda record: record.pop(name) and None


def put(path, value):
    """Set a place of the record, named as errors name it."""

    def change(record):
        *way, last = path.split(".")
        for name in way:
            record = record[name]
        record[last] = value

    return change


def picture(value):
    def change(record):
        record["asked"]["messages"][0]["content"][0] = value

    return change


WRONG = [
    (put("format", "llava-ref record 9"), "format: not a record of this version, expected 'llava-ref record 1'"),
    (lambda record: [record], "format: not a record of this version"),
    (deleted("settings"), "settings: missing"),
    (put("settings.backend", 3), "settings.backend: expected a text, got a whole number"),
    (put("settings.threads", True), "settings.threads: expected a whole number or null, got true or false"),
    (put("files.text", {}), "files.text: expected a list, got an object"),
    (put("prompt_ids", [1, "2"]), "prompt_ids[1]: expected a whole number, got a text"),
    (put("model_path", "/etc/passwd"), "model_path: unknown, expected one of format, versions"),
    (
        put("passes", [{"first": 1, "end": "2", "arrays": []}]),
        "passes[0].end: expected a whole number or null, got a text",
    ),
    (put("asked.messages", None), "asked: messages: 0 of messages, prompt and token_ids, expected one"),
    (put("asked.prompt", "x"), "asked: messages: 2 of messages, prompt and token_ids, expected one"),
    (put("asked.messages", [{"role": "king"}]), "asked.messages[0]: role: 'king' is unknown"),
    (picture({"type": "image", "path": "picture.png"}), "path: files are not opened here"),
    (picture({"type": "image_url", "image_url": {"url": "picture.png"}}), "files are not opened here"),
    (picture({"type": "image_url", "image_url": {"url": "http://x/y.png"}}), "URL images are off"),
    (picture({"type": "image_url", "image_url": {"url": "data:;base64,AAAA"}}), "asked.messages[0].content[0]"),
    (put("settings.quirks", {"gelu": "soft"}), "quirk: gelu: 'soft' is not one of"),
    (put("settings.profile", "mine"), "profile: 'mine': unknown"),
    (put("settings.precision", "quick"), "precision: 'quick'"),
    (put("settings.backend", "jax"), "backend: 'jax'"),
    (put("settings.template", "no such"), "template: 'no such': unknown"),
    (put("settings.n_context", 10**9), "n_context: 1000000000"),
    (put("sampling", {"top_x": 1}), "sampling: top_x: unknown"),
    (put("sampling.temperature", 1e9), "temperature: 1000000000.0"),
    (put("sampling.top_k", 0.5), "top_k: 0.5"),
    (put("logit_bias", {"-1": 2}), "logit_bias: '-1': expected a token id"),
    (put("max_tokens", -4), "max_tokens: -4"),
    (put("wanted", {"text": {"type": "colour"}}), "schema: "),
    (
        put(
            "wanted",
            {"text": True, "form": {"opening": "a", "between": "b", "joint": None, "closing": "", "place": "c"}},
        ),
        "wanted.form.place: expected one of template, system, user, got a text",
    ),
]


@pytest.mark.parametrize("change, says", WRONG, ids=[says[:40] for _, says in WRONG])
def test_a_wrong_field_is_named(change, says, replayed):
    status, out, err = replayed(change)
    assert (status, out) == (2, "") and err.count("\n") == 1, err
    assert err.startswith("error: /") and "changed.json: " in err and says in err


DEEP = b"[" * 100 + b"]" * 100


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"format": "llava-ref record 1", "passes": NaN}', "NaN is not a number in JSON"),
        (DEEP, "nested more than 64 levels deep"),
        (b"[" * 200_000, "not JSON|deep"),
        (b"[" + b"[]," * 600_000 + b"[]]", "more than 1,000,000 commas and brackets"),
        (b'{"format": "\\ud800"}', "half of a surrogate pair"),
        (b"9" * 5000, "not JSON"),
    ],
)
def test_a_file_that_is_no_record(data, says, cli, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    status, out, err = cli("replay", str(path))
    assert (status, out, err.count("\n")) == (2, "", 1) and any(word in err for word in says.split("|")), err


def test_a_cut_record(cli, made, tmp_path):
    data = (made / "run.json").read_bytes()
    for end in range(1, len(data) - 1, len(data) // 7):
        (tmp_path / "cut.json").write_bytes(data[:end])
        status, _, err = cli("replay", str(tmp_path / "cut.json"))
        assert (status, err.count("\n")) == (2, 1)


def test_what_is_no_regular_file_is_not_read(cli, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in cli("replay", str(tmp_path / "fifo"))[2]
    assert cli("replay", str(tmp_path / "none.json"))[0] == cli("replay", str(tmp_path))[0] == 2
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    assert "over 100 bytes, which no record has" in cli("replay", "run.json")[2]


def test_a_record_that_could_not_be_read_again_is_not_written(cli, made, monkeypatch):
    from .conftest import ASK

    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    status, _, err = cli("generate", *ASK, "--record", "large.json")
    assert status == 2 and "record: bytes: " in err and not (made / "large.json").exists()
    monkeypatch.setattr("llava_ref.records.stages.MAX_ARRAYS", 50)
    assert "record: arrays: more than 50" in cli("generate", *ASK, "--record", "large.json")[2]


def test_json_is_all_that_a_record_is(made):
    assert json.loads((made / "run.json").read_text())["format"] == module.FORMAT
