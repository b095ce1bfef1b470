"""The engine in JavaScript, which shares no line with this project, computes the same; a fault in it is found."""

import json
import shutil
from pathlib import Path

import pytest

from llava_ref import conformance
from llava_ref.cli import main
from llava_ref.conformance.engines.command import Command
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.loading import embedded

from .reference_cases import compared

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
ENGINE = Path(conformance.__file__).parent / "examples" / "javascript" / "engine.mjs"
WORDS = "Which of the words is blue?"


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_it_computes_the_same(kind, tmp_path):
    pair = build(tmp_path, TextSpec(width=64, mlp_width=96, n_layer=2, kind=kind), VisionSpec())
    case = Case(pair.text, None, (), "what is the color of a circle?")
    report = compared(case, Command(f"node {ENGINE}").run(case, n_greedy=4))
    assert not report.findings and report.n_compared == 3 + 2 * 15 + 1
    assert max(stage.own.rel_rms for stage in report.stages if stage.own) < 2e-6


@pytest.mark.parametrize(
    "sound, faulty, stage",
    [
        ("-2 * ((i % dh) >> 1) / dh", "-2.02 * ((i % dh) >> 1) / dh", "blk.0.Qcur_rope"),
        ("Math.floor(h * nKv / nHead)", "h % nKv", "blk.0.kqv_out"),
        ("row.length + eps", "row.length + 2 * eps", "blk.0.attn_norm"),
    ],
)
def test_a_fault_in_it_is_named(sound, faulty, stage, tmp_path, capsys):
    assert ENGINE.read_text().count(sound) == 1
    (tmp_path / "engine.mjs").write_text(ENGINE.read_text().replace(sound, faulty))
    words = ["-m", str(embedded()[0]), "-p", WORDS, "--json", "--against", f"exec:node {tmp_path / 'engine.mjs'}"]
    assert main(["conform", *words]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["stage"] == stage


@pytest.mark.parametrize(
    "words, says",
    [
        (["--mmproj", str(embedded()[1])], "this engine reads text only: leave out --image, and give -m"),
        (["--raw", "-p", "a</s>b"], "</s> in the prompt: this engine knows no control tokens there"),
    ],
)
def test_it_says_what_it_cannot(words, says, capsys):
    command = ["conform", "-m", str(embedded()[0]), "-p", WORDS, *words, "--against", f"exec:node {ENGINE}"]
    assert main(command) == 2
    assert says in capsys.readouterr().err
