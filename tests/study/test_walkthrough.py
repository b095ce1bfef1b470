"""A run told step by step: every array once, with the shape it has, its matrix, and the line that computes it."""

import json
import linecache

import numpy as np
import pytest
from PIL import Image

from llava_ref import load
from llava_ref.cli import main
from llava_ref.study.walkthrough import PACKAGE, walk

from ..support.tiny_pair import VICUNA, Tiny, write_pair

QUESTION = "Is it grey or is it blue?"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    Image.fromarray(np.full((9, 13, 3), 200, np.uint8)).save(folder / "a.png")
    return *write_pair(folder, Tiny(template=VICUNA)), folder / "a.png"


@pytest.fixture(scope="module")
def told(pair):
    model = load(*pair[:2], backend="numpy")
    part = [{"type": "image", "image": pair[2]}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": part}]
    phases = walk(model, lambda: model.request(messages), 3)
    return model, messages, {phase.name: phase for phase in phases}


def test_the_phases_of_a_run_in_order(told):
    assert list(told[2]) == ["load", "prompt", "pictures", "decoder", "answer"]
    assert all(phase.seconds > 0 for phase in told[2].values())


def test_every_array_is_told_as_a_trace_keeps_it(told):
    model, messages, phases = told
    with model.trace("*") as trace:
        reply = model.chat(messages, max_tokens=3)
    shapes = {name: list(x.shape) for name, x in trace.items()}
    of_prompt = phases["pictures"].arrays | phases["decoder"].arrays
    assert list(of_prompt) == list(shapes)
    for name, array in of_prompt.items():
        later = phases["answer"].arrays.get(name)
        rows = array.shape[0] + (later.shape[0] if later else 0)
        assert [rows, *array.shape[1:]] == shapes[name], name
    assert phases["answer"].facts["token ids"] == str(list(reply.token_ids))
    assert phases["answer"].facts["text"] == reply.text


def test_each_line_is_the_one_that_names_the_array(told):
    for phase in told[2].values():
        for array in phase.arrays.values():
            file, number = array.line.split(":")
            text = linecache.getline(str(PACKAGE / file), int(number))
            assert f'{array.stage.rpartition(".")[2]}"' in text, (array, text)


def test_matrices_and_keys_are_those_of_the_files(told):
    model, _, phases = told
    arrays = phases["decoder"].arrays
    assert arrays["blk.1.Kcur"].tensor == f"blk.1.attn_k.weight {model.text.file.tensors['blk.1.attn_k.weight'].type}"
    assert arrays["blk.1.attn_norm"].tensor is None
    said = phases["load"].facts[model.text.file.path.name]
    assert "llama.attention.head_count," in said and "general.license" not in said
    assert "no.such.key" not in said


def test_the_command_shows_the_first_block_and_counts_the_rest(pair, capsys):
    text, mmproj, picture = map(str, pair)
    ask = [
        "explain",
        "-m",
        text,
        "--mmproj",
        mmproj,
        "--image",
        picture,
        "-p",
        QUESTION,
        "-n",
        "2",
        "--backend",
        "numpy",
    ]
    assert main(ask) == 0
    shown = capsys.readouterr().out
    assert "blk.0.Qcur " in shown and "blk.1.Qcur " not in shown and "blk.1: the same" in shown
    assert main([*ask, "--all"]) == 0
    assert "blk.1.Qcur " in capsys.readouterr().out
    assert main([*ask, "--json"]) == 0
    phases = json.loads(capsys.readouterr().out)["phases"]
    assert [array["stage"] for array in phases[3]["arrays"]][0] == "embd"


def test_the_page_has_every_array_of_every_phase(pair, tmp_path, capsys):
    text, mmproj, picture = map(str, pair)
    words = ["explain", "-m", text, "--mmproj", mmproj, "--image", picture, "-p", QUESTION, "-n", "2", "--json"]
    assert main([*words, "--backend", "numpy", "-o", str(tmp_path / "run.html")]) == 0
    page = (tmp_path / "run.html").read_text()
    for phase in json.loads(capsys.readouterr().out)["phases"]:
        assert f"<h2>{phase['name']}</h2>" in page and page.count(f"<summary>{len(phase['arrays'])} arrays") >= bool(
            phase["arrays"]
        )
        for array in phase["arrays"]:
            assert f"<code>{array['stage']}</code></td><td>{' x '.join(map(str, array['shape']))}</td>" in page
            assert f"<code>{array['line']}</code>" in page
    assert main([*words, "-o", text]) == 2


def test_headroom_of_a_pair(pair, capsys):
    text, mmproj, picture = map(str, pair)
    ask = ["headroom", "-m", text, "--mmproj", mmproj, "--image", picture, "-p", QUESTION, "--backend", "numpy"]
    assert main(ask) == 0
    assert "least headroom: " in capsys.readouterr().out.splitlines()[-1]
    assert main([*ask, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["stages"]
    assert found["embd"]["headroom"] == pytest.approx(65504 / found["embd"]["largest"])
