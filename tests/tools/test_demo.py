"""`demo` on a tiny pair in the place of the embedded one, and on the embedded one."""

import json
import os
import sys

import pytest
from PIL import Image

import llava_ref
from llava_ref.generation.sampling import Sampling


@pytest.fixture
def assets(folder, monkeypatch):
    """A tiny pair and two pictures in the place of the embedded ones. The model says "a", always."""
    from llava_ref.tools import demo

    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    entries = [{"file": f"{i}.png", "question": f"what {i}?", "answer": answer} for i, answer in enumerate("ab")]
    (pictures / "pictures.json").write_text(json.dumps(entries))
    for entry in entries:
        Image.new("RGB", (9, 7), (255, 0, 0)).save(pictures / entry["file"])
    monkeypatch.setattr(demo, "embedded", lambda: (folder / "text.gguf", folder / "mmproj.gguf"))
    monkeypatch.setattr(demo, "MAX_TOKENS", 1)
    letter = llava_ref.load(folder / "text.gguf", backend="numpy").tokenizer.encode("a", prefix=False)[0]
    monkeypatch.setattr(demo, "Sampling", lambda grammar=None: Sampling(logit_bias={letter: 100.0}))
    return folder


DEMO = ["demo", "--backend", "numpy"]


def test_demo_paths(cli, assets):
    status, out, _ = cli("demo", "--paths")
    paths = json.loads(out)
    assert status == 0 and len(paths["images"]) == 2
    assert all(os.path.isfile(path) for path in (paths["model"], paths["mmproj"], *paths["images"]))


def test_demo_tells_right_from_wrong(cli, assets):
    status, out, _ = cli(*DEMO)
    lines = out.splitlines()
    assert status == 0 and "\x1b" not in out
    assert lines[:3] == ["0.png", "  question  what 0?", "  answer    a"]
    assert lines[3].startswith("  right     preprocess ") and " encode " in lines[3] and " decode " in lines[3]
    assert lines[8].startswith("  wrong, expected b  ")
    assert lines[-1].startswith("1 of 2 right; loaded in ")


def test_demo_draws_on_a_terminal(cli, assets, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = cli(*DEMO)[1]
    assert out.count("\x1b[48;2;255;0;0m▀") == 2 * 36 * 14
    for words in ("\x1b[32mright   \x1b[0m", "\x1b[31mwrong, expected b\x1b[0m", "\x1b[31m1 of 2 right\x1b[0m"):
        assert words in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in cli(*DEMO)[1]


def test_demo_json(cli, assets):
    got = json.loads(cli(*DEMO, "--json")[1])
    assert (got["right"], got["n"], got["backend"]) == (1, 2, "numpy")
    assert [(p["file"], p["text"], p["answer"]) for p in got["pictures"]] == [("0.png", "a", "a"), ("1.png", "a", "b")]


def test_demo_eval_counts_exact_answers(cli, assets, monkeypatch):
    from llava_ref.scenes import Question
    from llava_ref.scenes.asking import ask
    from llava_ref.tools import demo

    def questions(n, seed, way):
        assert (n, seed, way) == (4, 3, "text-first")
        for kind, answer in (("x", "a"), ("x", "A"), ("y", "a"), ("x", "a")):
            question = Question(kind, "what?", answer)
            yield ask(Image.new("RGB", (12, 9)), question, way, question)

    monkeypatch.setattr(demo, "fresh_asked", questions)
    asked = ("--eval", "4", "--seed", "3", "--ask", "text-first")
    status, out, err = cli(*DEMO, *asked, "--json", "--profile", "llama.cpp")
    got = json.loads(out)
    assert status == 0 and "4 of 4 questions, 75.0% answered exactly" in err
    assert (got["n"], got["right"], got["accuracy"], got["seed"], got["ask"]) == (4, 3, 0.75, 3, "text-first")
    assert got["by_kind"] == {"x": {"n": 3, "right": 2, "accuracy": 2 / 3}, "y": {"n": 1, "right": 1, "accuracy": 1}}
    assert got["profile"] == "llama.cpp"
    out = cli(*DEMO, *asked)[1]
    assert "x" in out and "66.7%" in out and "75.0%  (seed 3, text-first)" in out


def test_the_embedded_model_answers(cli):
    got = json.loads(cli(*DEMO, "--json")[1])
    assert got["n"] >= 6 and got["right"] == got["n"]
    got = json.loads(cli(*DEMO, "--eval", "20", "--seed", "1", "--json")[1])
    assert got["right"] >= 16
