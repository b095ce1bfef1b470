"""`batch`: every line has the server's answer, or an error of its own; the same input gives the same bytes."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from llava_ref.batch.remote import ModelActor
from llava_ref.errors import ParameterError

from ..api.running import data_uri, picture, serving
from .requests import CHAT, GOOD, PICTURES, RESPONSE, line, read, say, see, write

NAMES = ["star", "warm", "raw", "response", "again"]


def lasting(body):
    """What of a server's answer does not depend on when it was given."""
    kept = {k: v for k, v in body.items() if k not in ("id", "created", "created_at", "completed_at", "timings")}
    for item in kept.get("output", []):
        del item["id"]
    usage = kept["usage"]
    usage.get("prompt_tokens_details", usage.get("input_tokens_details"))["cached_tokens"] = 0
    return kept


def test_answers_are_the_server_s(batch):
    assert batch(GOOD) == (0, "5 of 5 answered, 0 with errors: out.jsonl\n", "")
    answers = read(batch.out)
    assert [answer["custom_id"] for answer in answers] == NAMES
    assert answers[0]["response"]["body"]["choices"][0]["message"]["content"] == "3"
    with serving() as server:
        for request, answer in zip(map(json.loads, GOOD), answers, strict=True):
            identity = answer["id"].removeprefix("batch_req_")
            assert answer["error"] is None and set(answer) == {"id", "custom_id", "response", "error"}
            response = answer["response"]
            assert (response["status_code"], response["request_id"]) == (200, f"req_{identity}")
            assert response["body"]["id"].endswith(identity) and len(identity) == 32
            seed = {"seed": int(identity[:12], 16)}
            wanted = server.post(request["url"], request["body"] | seed).json()
            assert lasting(response["body"]) == lasting(wanted)
    assert answers[4]["response"]["body"]["warnings"] == ["store: has no effect here"]


def test_the_same_input_gives_the_same_bytes_one_after_the_other_or_together(batch):
    batch(GOOD)
    first = batch.out.read_bytes()
    assert "timings" not in first.decode() and '"created":0' in first.decode()
    usage = read(batch.out)[4]["response"]["body"]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0, "whether the picture was kept is no part of an answer"
    batch(None, output="again.jsonl")
    assert (batch.folder / "again.jsonl").read_bytes() == first
    seeds = {answer["id"] for answer in read(batch.out)}
    batch(GOOD[1:], output="other.jsonl")
    assert not seeds & {answer["id"] for answer in read(batch.folder / "other.jsonl")}, "ids know their place"


def test_calls_of_functions_have_ids_that_repeat(batch):
    parameters = {
        "type": "object",
        "properties": {"n": {"enum": [1]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    function = {"name": "count", "parameters": parameters, "strict": True}
    chat = say("Count.", max_tokens=60, n=2, tools=[{"type": "function", "function": function}], tool_choice="required")
    response = {"input": "Count.", "tools": [{"type": "function", **function}], "tool_choice": "required"}
    one = {"parallel_tool_calls": False}
    asked = [line("chat", chat | one), line("response", response | one | {"max_output_tokens": 60}, RESPONSE)]
    assert batch(asked)[0] == 0
    batch(None, output="again.jsonl")
    assert (batch.folder / "again.jsonl").read_bytes() == batch.out.read_bytes()
    chats, (made,) = read(batch.out)[0]["response"]["body"]["choices"], read(batch.out)[1]["response"]["body"]["output"]
    calls = [choice["message"]["tool_calls"][0] for choice in chats]
    assert [call["function"]["name"] for call in calls] == ["count", "count"] and made["name"] == "count"
    assert calls[0]["id"] != calls[1]["id"] and made["id"].startswith("fc_") and made["id"][3:] != made["call_id"]


BAD = {  # a line -> the code of its error, the parameter, words of its message
    "{broken": ("invalid_json_line", None, "the line is not JSON"),
    "[1]": ("invalid_json_line", None, "expected an object"),
    '"\\ud800"': ("invalid_json_line", None, "half of a surrogate pair"),
    '{"custom_id": NaN}': ("invalid_json_line", None, "NaN is not a number"),
    "[" * 80 + "]" * 80: ("invalid_json_line", None, "nested more than 64"),
    '{"custom_id": "a", "method": "POST", "url": "/v1/responses"}': (
        "missing_required_parameter",
        "body",
        "body: missing",
    ),
    line("u", {}, "/v1/embeddings"): ("invalid_url", "url", "expected one of /v1/chat/completions"),
    line("m", {}, method="GET"): ("invalid_method", "method", "expected 'POST'"),
    line("x", {}, extra=1): ("invalid_request", "extra", "unknown"),
    line("l", [1]): ("invalid_request", "body", "expected an object"),
    line("", {}): ("invalid_request", "custom_id", "1 to 512"),
    line("x" * 513, {}): ("invalid_request", "custom_id", "1 to 512"),
    line(7, {}): ("invalid_request", "custom_id", "1 to 512"),
    line("first", say("Hi")): ("duplicate_custom_id", "custom_id", "line 1"),
}
REFUSED = {  # a body that the server refuses -> the code and the parameter
    line("stream", say("Hi", stream=True)): ("unsupported_value", "stream"),
    line("tokens", say("Hi", max_tokens=-5)): ("invalid_value", "max_tokens"),
    line("empty", {}): ("missing_required_parameter", "messages"),
    line("url", see("https://pictures.example/a.png", "Hi")): (
        "invalid_value",
        "messages[0].content[0].image_url.url",
    ),
    line("picture", see(data_uri(b"no picture, but long enough"), "Hi")): (
        "unsupported_image_format",
        "messages[0].content[0].image_url.url",
    ),
    line("long", say("word " * 3000)): ("context_length_exceeded", "messages"),
}


def test_an_error_is_of_its_line_and_the_run_goes_on(batch):
    lines = [line("first", say("Hi")), "", *BAD, *REFUSED, line("last", say("Hi"))]
    status, out, err = batch(lines)
    answers = read(batch.out)
    assert status == 1 and out == f"2 of {len(answers)} answered, {len(BAD) + len(REFUSED)} with errors: out.jsonl\n"
    first, *others, last = answers
    assert first["response"]["body"]["choices"] == last["response"]["body"]["choices"]
    for number, (answer, (code, param, words)) in enumerate(zip(others, BAD.values(), strict=False), 3):
        error = answer["error"]
        assert answer["response"] is None and words in error["message"], answer
        assert (error["code"], error["param"], error["line"]) == (code, param, number)
        assert error["message"].startswith(f"line {number}: ")
    for answer, (code, param) in zip(others[len(BAD) :], REFUSED.values(), strict=True):
        error = answer["response"]["body"]["error"]
        assert (answer["error"], answer["response"]["status_code"]) == (None, 400)
        assert (error["code"], error["param"]) == (code, param), error
    said = err.splitlines()
    assert len(said) == 11 and all(text.startswith(f"in.jsonl: line {n}: ") for n, text in enumerate(said[:10], 3))
    assert (
        said[10] == f"in.jsonl: {len(BAD) + len(REFUSED) - 10} more lines with errors, each with its own in out.jsonl"
    )


def test_counts_as_json(batch):
    assert json.loads(batch([*GOOD[2:4], "{"], "--json")[1]) == {
        "total": 3, "completed": 2, "failed": 1, "resumed": 0,
    }  # fmt: skip


def test_a_line_over_the_limit_is_an_error_and_not_read(batch):
    long = line("long", say("x" * 200_000))
    status, _, err = batch([long, GOOD[2], long, GOOD[3]], "--max-body", "1000")
    assert status == 1 and "line 1: over 1,000 bytes" in err and "line 3: over 1,000 bytes" in err
    assert [answer["custom_id"] for answer in read(batch.out)] == [None, "raw", None, "response"]


def named(url, **settings):
    return line(url, see(url, "Count the stars.", **settings))


def content(answer):
    body = answer["response"]["body"]
    return body["error"]["message"] if "error" in body else body["choices"][0]["message"]["content"]


@pytest.fixture
def folder(batch):
    """A folder of pictures, with a link that leads out of it, and what is no picture."""
    place = batch.folder / "pictures"
    place.mkdir()
    (place / "a b.png").write_bytes(picture("count.png"))
    (place / "large.png").write_bytes(bytes(20 * 2**20 + 1))
    (place / "notes.txt").write_text("secret words")
    (place / "empty.png").touch()
    (place / "out.png").symlink_to(PICTURES / "count.png")
    os.mkfifo(place / "pipe.png")
    return place


def test_pictures_by_path(batch, folder):
    lines = [
        named("file://pictures/a%20b.png"),
        named(f"file://{folder}/a b.png"),
        line("response", {"input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": "file://pictures/a b.png"},
            {"type": "input_text", "text": "Count the stars."}]}]}, RESPONSE),
    ]  # fmt: skip
    assert batch(lines, "--allow-image-dir", "pictures")[0] == 0
    answers = read(batch.out)
    assert [content(answer) for answer in answers[:2]] == ["3", "3"]
    assert answers[2]["response"]["body"]["output"][0]["content"][0]["text"] == "3"


WHERE = "messages[0].content[0].image_url.url"
CANNOT = {  # a URL -> words of the error, with the folder pictures/ allowed
    "file://pictures/absent.png": "file: No such file",
    "file://pictures/pipe.png": "file: not a regular file",
    "file://pictures": "file: Is a directory",
    "file://pictures/large.png": "size: over 20,971,520 bytes",
    "file://pictures/empty.png": "format: no bytes, expected PNG",
    "file://pictures/notes.txt": "format: unknown, expected PNG, JPEG, WebP, GIF",
    "file://pictures/out.png": "in no folder that pictures may be read from",
    "file://pictures/../in.jsonl": "in no folder that pictures may be read from",
    "file://pictures/%2e%2e/in.jsonl": "in no folder that pictures may be read from",
    "file:///etc/passwd": "in no folder that pictures may be read from",
    "file:///etc/absent": "in no folder that pictures may be read from",
    "file://pictures/a%00.png": "not a path",
    "file:pictures/a.png": "file: is not supported",
    "pictures/a b.png": "not base64",
}


def test_pictures_by_path_that_cannot_be_had(batch, folder):
    status, _, _ = batch([named(url) for url in CANNOT], "--allow-image-dir", "pictures")
    assert status == 1
    for answer, (url, words) in zip(read(batch.out), CANNOT.items(), strict=True):
        error = answer["response"]["body"]["error"]
        assert words in error["message"] and error["param"] == WHERE, (url, error)
        assert "secret" not in str(answer) and str(batch.folder) not in error["message"]


def test_no_file_is_opened_unless_a_folder_is_named(batch, folder):
    batch([named("file://pictures/a%20b.png"), named(f"file://{folder}/absent.png")])
    assert ["(--allow-image-dir)" in content(answer) for answer in read(batch.out)] == [True, True]
    status, _, err = batch(None, "--allow-image-dir", "nowhere", output="other.jsonl")
    assert (status, err) == (2, "error: --allow-image-dir: nowhere: not a folder\n")


def test_pictures_by_path_are_within_the_limits_of_a_request(batch, folder):
    size = len(picture("count.png"))
    body = see("file://pictures/a b.png", "Count the stars.")
    body["messages"][0]["content"] += body["messages"][0]["content"][:1]
    many = line("many", body)
    batch([many], "--allow-image-dir", "pictures", "--max-images", "1")
    assert "over 1 images" in content(read(batch.out)[0])
    batch([many], "--allow-image-dir", "pictures", "--max-body", str(2 * size - 1), output="two.jsonl")
    assert "with the pictures before it" in content(read(batch.folder / "two.jsonl")[0])


def test_a_folder_with_cases_and_pictures(batch, folder):
    write(folder / "cases.jsonl", [named("file://a b.png"), named("file://out.png")])
    assert batch(None, source="pictures")[0] == 1
    first, second = read(batch.out)
    assert content(first) == "3" and "in no folder" in content(second)


class OnePicture(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/count.png" else 404)
        self.end_headers()
        self.wfile.write(picture("count.png"))

    def log_message(self, *_):
        pass


def test_pictures_by_url(batch):
    with ThreadingHTTPServer(("127.0.0.1", 0), OnePicture) as host:
        Thread(target=host.serve_forever).start()
        url = f"http://127.0.0.1:{host.server_port}"
        lines = [named(f"{url}/count.png"), named(f"{url}/absent.png"), named("http://localhost/count.png")]
        assert batch(lines, "--allow-image-host", "127.0.0.1")[0] == 1
        host.shutdown()
    good, absent, other = read(batch.out)
    assert content(good) == "3" and "status 404" in content(absent) and "(--allow-image-host)" in content(other)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["absent.jsonl", "-o", "out.jsonl"], "absent.jsonl: file: No such file"),
        (["in.jsonl"], "the following arguments are required: -o/--output"),
        (["in.jsonl", "-o", "in.jsonl"], "is one of the input files"),
        (["in.jsonl", "-o", "absent/out.jsonl"], "its folder does not exist"),
        (["in.jsonl", "-o", "out.jsonl", "--max-images", "17"], "--max-images: 17: expected at most 16"),
        (["empty.jsonl", "-o", "out.jsonl"], "empty.jsonl: lines: 0 requests, expected 1 to 1,000,000"),
        (["in.jsonl", "-o", "out.jsonl", "-m", "in.jsonl"], "in.jsonl: magic: "),
        ([".", "-o", "out.jsonl"], "cases.jsonl: file: No such file"),
    ],
)
def test_what_a_user_can_mend_is_one_line(batch, arguments, words, capsys):
    from llava_ref.cli import main

    write(batch.folder / "in.jsonl", GOOD[2:4])
    write(batch.folder / "empty.jsonl", ["", " "])
    assert main(["batch", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert not batch.out.exists()


def test_a_parameter_without_effect_is_refused_if_asked(batch):
    asked = [line("a", say("Hi", nonsense=1)), line("b", say("Hi"), CHAT)]
    assert batch(asked, "--strict")[0] == 1
    assert read(batch.out)[0]["response"]["body"]["error"]["code"] == "unsupported_parameter"


def test_a_machine_with_other_files_says_so():
    """What a worker of a cluster returns before anything is loaded."""
    actor = ModelActor()
    assert actor.load(lambda: {"a": 1, "b": 2}, {"a": 1, "b": 3}, None) == "b: 2 there, 3 here"
    assert actor.load(lambda: {"a": 1}, {"a": 1, "b": 3}, None) == "b: absent there, 3 here"

    def absent():
        raise ParameterError("text.gguf", "file", "No such file or directory")

    assert actor.load(absent, {}, None) == "text.gguf: file: No such file or directory"


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "local", "127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_that_cannot_be(batch, address):
    pytest.importorskip("ray", reason="the cluster extra is not installed: ray")
    status, out, err = batch(GOOD, "--ray", address)
    assert (status, out) == (2, "") and err.startswith(f"error: --ray: {address}: ") and err.count("\n") == 1
    assert ("no cluster answers: Connection refused" if address == "127.0.0.1:1" else "expected auto or HOST") in err


def test_lines_that_share_steps_have_the_bytes_of_one_alone(batch):
    pytest.importorskip("llvmlite", reason="the fast extra is not installed")
    asked = [line(f"{i}", say("Hello", temperature=1.0, logprobs=True, max_tokens=3 + 5 * (i % 3))) for i in range(9)]
    assert batch([*asked, GOOD[1], "{"], "--precision", "fast", "--max-running", "4")[0] == 1
    batch(None, "--precision", "fast", "--max-running", "1", output="alone.jsonl")
    assert batch.out.read_bytes() == (batch.folder / "alone.jsonl").read_bytes()
