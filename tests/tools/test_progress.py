"""Tests the line of progress on a terminal: what it says, and that nothing of it is left."""

import io
import json
import sys

import pytest

import llava_ref
from llava_ref.cli import main
from llava_ref.errors import PromptError
from llava_ref.generation.session import Session
from llava_ref.tools import progress

PICTURES = llava_ref.embedded()[0].parent / "pictures"
ASK = ("generate", "--image", str(PICTURES / "count.png"), "--image", str(PICTURES / "digit.png"), "-p", "Count.")


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def states(self):
        """What the first line showed, one state after the other, without the seconds."""
        states = self.getvalue().split("\n")[0].split(progress.ERASE)
        return [state.rpartition(" · ")[0] for state in states[:-1] if state]

    @property
    def screen(self):
        return "\n".join(line.rpartition(progress.ERASE)[2] for line in self.getvalue().split("\n"))


@pytest.fixture
def run(monkeypatch):
    """Run a command whose standard error is a terminal; return its exit code and the terminal."""

    def run(*argv, columns="100", output=False):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(progress, "INTERVAL", 0.0)
        terminal = Terminal()
        for name in ("stderr", "stdout")[: 1 + output]:
            monkeypatch.setattr(sys, name, terminal)
        return main(argv), terminal

    return run


def test_what_a_terminal_shows_of_an_answer(run):
    status, terminal = run(*ASK)
    assert status == 0
    loading, *said = terminal.states
    assert loading == "loading the model"
    pictures = [f"reading picture {n} of 2: block {i} of 4" for n in (1, 2) for i in range(1, 5)]
    assert said[:8] == pictures
    prompt = [text for text in said[8:] if text.startswith("reading the prompt")]
    assert len(prompt) == 4 * 5 and prompt[-1].endswith(" 140 of 140 positions"), "4 layers, 5 stretches"
    assert said[8 + len(prompt) :] == ["1 tokens", "2 tokens"]
    assert terminal.screen.startswith("[12 text + 128 image positions; ") and terminal.screen.count("\n") == 1


def test_the_answer_is_the_same_and_stands_alone_on_a_terminal(run, capsys):
    main(ASK)
    alone = capsys.readouterr().out
    _, terminal = run(*ASK, output=True)
    assert terminal.screen.startswith(f"{alone}[12 text") and terminal.screen.count("\n") == 2


def test_nothing_where_it_is_no_terminal(capsys):
    assert main(ASK) == 0
    assert capsys.readouterr().err.startswith("[12 text")


def test_erased_in_front_of_an_error(run, monkeypatch):
    def fail(*_):
        raise PromptError("prompt", "tokens", "odd")

    monkeypatch.setattr(Session, "_logits", fail)
    status, terminal = run(*ASK)
    assert (
        status == 2
        and "reading the prompt" in terminal.getvalue()
        and terminal.screen == "error: prompt: tokens: odd\n"
    )


def test_a_narrow_terminal(run):
    _, terminal = run(*ASK, columns="20")
    assert max(map(len, terminal.getvalue().split(progress.ERASE)[:-1])) == 19, "the last column would wrap"


def test_quality_says_which_step_and_which_block(run):
    status, terminal = run("quality", "-n", "2", "--rank", "none", "--image", str(PICTURES / "count.png"), "-p", "Hi")
    said = terminal.getvalue()
    assert "asking the reference · reading picture: block 4 of 4" in said and "1 of 1 answers of the reference" in said
    assert (status, terminal.screen) == (0, "")


def test_encode(run, tmp_path):
    _, terminal = run("encode", "--image", str(PICTURES / "count.png"), "-o", str(tmp_path / "x.safetensors"))
    blocks = [f"reading picture: block {i} of 4" for i in range(1, 5)]
    assert terminal.states == ["loading the model", *blocks]


def test_chat_shows_each_answer_from_its_beginning(run, monkeypatch):
    lines = iter([f"/image {PICTURES / 'count.png'}", "Count.", "And again?", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    status, terminal = run("chat", output=True)
    assert status == 0
    first, second, third = (text.split(progress.ERASE) for text in terminal.getvalue().split("\n"))
    said = [[text.rpartition(" · ")[0] for text in part] for part in (first, second)]
    assert said[0][1] == "loading the model" and said[0][3:7] == [
        f"reading picture: block {i} of 4" for i in range(1, 5)
    ]
    assert said[0][-2] == "reading the prompt: 74 of 74 positions" and third == [""]
    assert said[1] == ["", *(f"reading the prompt: {n} of 87 positions" for n in (72, 77, 82, 87)), ""], (
        "reused, said once"
    )
    assert first[-1].strip() and second[-1].strip(), "the answer is what is left on the line"


def test_batch_says_how_far_it_is_and_how_long_it_will_take(run, tmp_path, monkeypatch):
    pytest.importorskip("starlette", reason="the server extra is not installed")
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    fields = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = [json.dumps({"custom_id": f"{i}", **fields}) for i in range(3)]
    (tmp_path / "in.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]))
    monkeypatch.setattr("time.monotonic", iter(range(0, 10**9, 60)).__next__)
    arguments = [str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    status, terminal = run("batch", *arguments)
    said = terminal.getvalue()
    assert status == 1 and "loading the model" in said and "1 of 4 lines · about" in said
    assert "2 of 4 lines, 1 with errors · about" in said and "4 of 4 lines, 1 with errors" in said
    assert terminal.screen.startswith(f"{arguments[0]}: line 2: the line is not JSON: ")
    assert terminal.screen.count("\n") == 1 and terminal.screen.endswith("(char 1)\n")
