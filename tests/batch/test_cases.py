"""`conform` and `quality` ask the chats of a folder of cases, as `batch` does."""

import json
import re
import shutil
from pathlib import Path

import pytest

from llava_ref.cli import main

from .requests import PICTURES, RESPONSE, data_uri, line, picture, say, see, write

STARS = see("file://count.png", "Count the stars.")


@pytest.fixture
def cases(batch):
    """Writes a folder of cases with a picture."""

    def write_cases(*lines):
        folder = batch.folder / "cases"
        folder.mkdir()
        shutil.copy(PICTURES / "count.png", folder)
        write(folder / "cases.jsonl", lines)
        return folder

    return write_cases


@pytest.fixture
def said(capsys):
    """Runs a command; gives its exit code and what it says as JSON."""

    def run(*arguments):
        status = main([*arguments, "-n", "2", "--backend", "numpy", "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def test_quality_of_a_case_is_that_of_its_picture_and_question(cases, said):
    cases(line("stars", STARS), line("uri", see(data_uri(picture("count.png")), "Count the stars.")))
    status, found = said("quality", "--rank", "none", "--cases", "cases")
    _, alone = said("quality", "--rank", "none", "--image", str(PICTURES / "count.png"), "-p", "Count the stars.")
    assert status == 0
    first, second = found["cases"]
    (only,) = alone["cases"]
    assert (first["label"], second["label"], only["label"]) == ("stars", "uri", "count.png")
    assert first | {"label": ""} == second | {"label": ""} == only | {"label": ""}


def test_conform_of_each_case_is_that_of_its_picture_and_question(cases, said, capsys):
    system = {"role": "system", "content": "Be brief."}
    cases(line("stars", STARS), line("hello", {"messages": [system, *say("Hello")["messages"]]}))
    against = ["--against", "this:backend=numpy,class_token=last"]
    status, found = said("conform", "--cases", "cases", *against)
    alone = said("conform", "--image", str(PICTURES / "count.png"), "-p", "Count the stars.", *against)
    assert (status, found["same"]) == (1, False) == (alone[0], alone[1]["same"])
    assert [(case["custom_id"], case["same"]) for case in found["cases"]] == [
        ("stars", False),
        ("hello", True),
    ]
    for name in ("stages", "findings", "outcome"):
        assert found["cases"][0][name] == alone[1][name]
    status = main(["conform", "--cases", "cases/cases.jsonl", "--against", "this:backend=numpy", "--backend", "numpy"])
    assert status == 2 and "no folder that pictures may be read from" in capsys.readouterr().err, "a file allows none"


def test_the_page_groups_cases_by_where_they_differ_first(cases, capsys):
    seen = see("file://count.png", "Count <b>all</b> stars.")
    cases(line("stars", STARS), line("<b>stars</b>", seen), line("hello", say("Hello")))
    arguments = ["-n", "1", "--backend", "numpy", "--report", "page.html"]
    assert main(["conform", "--cases", "cases", "--against", "this:backend=numpy,class_token=last", *arguments]) == 1
    page = Path("page.html").read_text()
    assert "1 of 3 cases are within their bounds" in page and "<b>stars" not in page and "<b>all" not in page
    rows = re.findall(r"<tr><td.*?</tr>", page, re.DOTALL)
    (parting,) = [row for row in rows if "It vanishes with class_token=last" in row]
    assert "<td>2</td>" in parting and "stars, &lt;b&gt;stars&lt;/b&gt;" in parting
    marks = re.findall(r'<td class="l (yes|no)">.</td><td class="l wrap">(.*?)</td>', page)
    assert marks == [("no", "stars"), ("no", "&lt;b&gt;stars&lt;/b&gt;"), ("yes", "hello")]
    assert page.count("<details") == 2 and "cases.jsonl" in page.rpartition("<footer")[2]
    assert main(["conform", "--cases", "cases", "--against", "this:backend=numpy", *arguments]) == 0
    page = Path("page.html").read_text()
    assert "3 of 3 cases" in page and "<details" not in page and "differ first" not in page
    capsys.readouterr()


@pytest.mark.parametrize(
    "command, arguments, words",
    [
        ("quality", ["-p", "Hi"], "--prompt: with --cases: "),
        ("quality", ["--image", "a.png"], "--image: with --cases: "),
        ("conform", ["--against", "hf", "-p", "Hi"], "--prompt: with --cases: "),
        ("conform", ["--against", "hf", "--raw"], "--raw: with --cases: "),
        ("conform", ["--against", "cases/cases.jsonl"], "a trace file holds the run of a single question"),
        ("conform", ["--against", "this:backend=numpy"], "cases.jsonl: line 2: url: '/v1/responses', expected one of"),
    ],
)
def test_what_cannot_be_is_one_line(cases, capsys, command, arguments, words):
    cases(line("a", say("Hi")), line("b", {"input": "Hi"}, RESPONSE))
    assert main([command, "--cases", "cases", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err


@pytest.mark.parametrize(
    "body, words",
    [
        ({}, "line 1: messages: type: expected a list of messages"),
        (see("file://absent.png", "Hi"), "line 1: messages[0].content[0].image_url.url: file: No such file"),
        (say("Hi", stream=True), "line 1: stream: a line of a batch is answered whole"),
    ],
)
def test_a_case_that_cannot_be_asked_is_named(cases, capsys, body, words):
    cases(line("a", body))
    assert main(["quality", "--cases", "cases"]) == 2
    assert words in capsys.readouterr().err
