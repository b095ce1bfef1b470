"""`apicheck` passes this server, and finds each of many things that a proxy in front of it breaks."""

import json
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.cli import main
from llava_ref.conformance.api.case import ApiCase, Untold
from llava_ref.conformance.api.suite import CASES, GROUPS, chosen, judge, run
from llava_ref.conformance.api.target import Target

from ..api.running import serving
from .broken_server import Breaking, broken, each_chunk, each_message

PAGE = Path(__file__).parents[2] / "docs" / "apicheck.md"
SLOW = ("errors.large_body", "answers.too_long")  # ten seconds each; they were a part of the runs in docs/apicheck.md


@pytest.fixture(scope="module")
def served():
    with serving() as running:
        yield running


def without(*names):
    return lambda body: {key: value for key, value in body.items() if key not in names}


def picture_of(part):
    return part["image_url"]["url"] if part["type"] == "image_url" else None


def only_first_picture(parts):
    pictures = [part for part in parts if picture_of(part)]
    return [part for part in parts if part not in pictures[1:] or part is pictures[0]]


def sorted_pictures(parts):
    pictures = iter(sorted(filter(picture_of, parts), key=picture_of))
    return [next(pictures) if picture_of(part) else part for part in parts]


def sorted_texts(parts):
    texts = iter(sorted((part for part in parts if part["type"] == "text"), key=lambda part: part["text"]))
    return [next(texts) if part["type"] == "text" else part for part in parts]


def forget_earlier(body):
    for message in body["messages"][:-1]:
        if isinstance(message["content"], list):
            message["content"] = [part for part in message["content"] if not picture_of(part)]
    return body


def uncounted(body):
    usage = body.get("usage")
    if usage:
        n = usage["prompt_tokens_details"]["image_tokens"]
        usage |= {"prompt_tokens": usage["prompt_tokens"] - n, "total_tokens": usage["total_tokens"] - n}
    return body


def without_param(body):
    body.get("error", {}).pop("param", None)
    return body


def upside_down(body):
    for choice in body.get("choices", []):
        for one in (choice["logprobs"] or {}).get("content", []):
            one["top_logprobs"].reverse()
    return body


def no_such_base64(parts):
    return [part for part in parts if "@" not in (picture_of(part) or "")]


def with_role(chunk, i):
    for choice in chunk["choices"]:
        choice["delta"]["role"] = "assistant"
    return chunk


def twice_finished(chunk, i):
    for choice in chunk["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or ("stop" if i == 1 else None)
    return chunk


FAULTS = {
    "only the first picture is kept": (
        Breaking(request=each_message(only_first_picture)), "order", {"order.both_pictures", "order.second_picture"}),
    "pictures are sorted": (Breaking(request=each_message(sorted_pictures)), "order", {"order.order_of_pictures"}),
    "texts are sorted": (Breaking(request=each_message(sorted_texts)), "order", {"order.order_of_texts"}),
    "pictures of earlier messages are forgotten": (
        Breaking(request=forget_earlier), "order", {"order.earlier_message"}),
    "usage leaves out pictures": (
        Breaking(answer=uncounted), "pictures", {"pictures.counted_in_full"}),
    "broken base64 is left out": (
        Breaking(request=each_message(no_such_base64)), "pictures", {"pictures.broken_base64"}),
    "max_tokens is ignored": (
        Breaking(request=without("max_tokens", "max_completion_tokens")), "answers",
        {"answers.max_tokens", "answers.max_completion_tokens"}),
    "stop is ignored": (Breaking(request=without("stop")), "answers", {"answers.stop"}),
    "errors have no param": (
        Breaking(answer=without_param), "errors",
        {"errors.param_and_code", "errors.names_the_parameter", "errors.unknown_model"}),
    "client faults are 500": (
        Breaking(status=lambda status: 500 if status == 400 else status), "errors",
        {f"errors.{name}" for name in "shape param_and_code not_json no_messages wrong_type names_the_parameter "
         "out_of_range unknown_part unknown_role unknown_model".split()}),
    "a stream has no end mark": (
        Breaking(chunks=lambda lines: lines[:-1]), "streams", {"streams.end_mark"}),
    "every chunk has a role": (Breaking(chunks=each_chunk(with_role)), "streams", {"streams.role_first"}),
    "every chunk has its own id": (
        Breaking(chunks=each_chunk(lambda chunk, i: chunk | {"id": f"c{i}"})), "streams", {"streams.one_id"}),
    "a stream finishes twice": (
        Breaking(chunks=each_chunk(twice_finished)), "streams", {"streams.one_finish_reason"}),
    "a piece of a stream is lost": (
        Breaking(chunks=lambda lines: [*lines[:2], *lines[3:]]), "streams", {"streams.joined"}),
    "events have names": (
        Breaking(chunks=lambda lines: [f"event: chunk\n{line}" for line in lines]), "streams",
        {"streams.no_event_names"}),
    "a schema is ignored": (
        Breaking(request=without("response_format")), "json", {"json.an_object", "json.a_schema", "json.no_schema"}),
    "functions are ignored": (Breaking(request=without("tools", "tool_choice")), "json", {"json.a_function"}),
    "a client that left holds up the next": (Breaking(held=5), "clients", {"clients.one_that_leaves"}),
    "alternatives are upside down": (
        Breaking(answer=upside_down), "logprobs", {"logprobs.probabilities", "logprobs.likeliest_first"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_is_broken_in_one_way_is_found(served, fault):
    how, group, wanted = FAULTS[fault]
    with broken(served.url, how) as url:
        report = run(
            Target(url, "m", patience=1.0), [case for case in chosen([group]) if case.name not in SLOW], lambda _: None
        )
    found = {one.case.name: one.why for one in report.judged if one.verdict == "fail"}
    assert set(found) == wanted, found
    assert report.sound == all(one.case.level != "must" for one in report.judged if one.verdict == "fail")


def test_this_server_meets_every_demand(served):
    """All of them through the proxy that breaks nothing, so that no fault is the proxy's."""
    with broken(served.url, Breaking()) as url:
        report = run(Target(url, "m"), [case for case in CASES if case.name not in SLOW], lambda _: None)
    assert {one.case.name: one.why[:3] for one in report.judged if one.verdict == "fail"} == {
        "errors.unknown_model": "200"
    }
    assert [one.case.name for one in report.judged if one.verdict == "skip"] == [
        "pictures.unreachable",
        "pictures.fetched",
    ]
    assert report.sound and report.count("must", "pass") > 40


def test_a_case_that_breaks_on_a_strange_answer_has_failed(served):
    def strange(target):
        target.send("GET", "/models").json["choices"][0]

    def untold(target):
        raise Untold("why")

    target = Target(f"{served.url}/v1", "m")
    one = judge(ApiCase("a.b", "must", "", "", strange), target)
    assert one.verdict == "fail" and "KeyError" in one.why and one.curl == f"curl -sS -i -X GET {served.url}/v1/models"
    assert judge(ApiCase("a.b", "must", "", "", untold), target).verdict == "skip"
    gone = judge(chosen(["pictures.png"])[0], Target("http://127.0.0.1:9/v1", "m"))
    assert gone.verdict == "fail" and gone.why.startswith("no answer: ")


def test_the_command(served, capsys, tmp_path):
    """The key is sent, and written nowhere."""
    page = tmp_path / "api.html"
    line = ["apicheck", f"{served.url}/v1/", "--only", "logprobs", "--only", "json.a_schema", "--api-key", "s3cret"]
    assert main([*line, "--report", str(page)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{served.url}/v1, model shapes-text.q8_0: every must is met\n") and "\nmust " in out
    assert "logprobs.alternatives" in page.read_text() and "s3cret" not in page.read_text() + out
    with broken(served.url, FAULTS["a schema is ignored"][0]) as url:
        assert main(["apicheck", url, "--only", "json", "--json"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert report["counts"]["must"] == {"pass": 0, "fail": 2, "skip": 0} and not report["sound"]
        assert main(["apicheck", url, "--only", "json"]) == 1
        out = capsys.readouterr().out
    assert "\nmust json.a_schema: A strict json_schema is kept.\n" in out and f"curl -sS -i -X POST {url}" in out
    assert main(["apicheck", url, "--only", "jsn"]) == 2 and "did you mean json?" in capsys.readouterr().err


def test_the_page_about_it_shows_what_is_printed(served, capsys):
    page = PAGE.read_text("utf-8").replace("http://127.0.0.1:3928", served.url)
    command, shown = re.search(r"^```console\n\$ llava-ref (.+)\n((?:.*\n)+?)```", page, re.M).groups()
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out == shown


def test_the_page_about_it_names_what_there_is():
    page = PAGE.read_text("utf-8")
    groups = {name: int(count) for name, count in re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.M)}
    assert groups == {group.name: len(group.cases) for group in GROUPS}
    named = set(re.findall(r"`(\w+\.\w+)` \|", page))
    assert len(named) > 10 and named <= {case.name for case in CASES}
