"""The example over llama.cpp's C interface is judged as the adapter in Python is, to the bit, and a fault of its own is
found at its stage."""

import json
import shutil
import subprocess
from functools import cache

import numpy as np
import pytest

from llava_ref.cli import main
from llava_ref.conformance.engines.command import Command
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.examples.llama_cpp import build
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec
from llava_ref.conformance.pairs.pairs import build as build_llava

from .family_stages import Asked, Family
from .qwen2vl_cases import FAMILY as QWEN
from .reference_cases import compared

reason = oracle.missing() or build.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
LLAVA = Family("LLaVA", build_llava, {}, TextSpec(), VisionSpec())
GEMMA = Family("Gemma 3", build_gemma3, {}, Gemma3Spec(), SiglipSpec())
WORDS = "what is the color of a circle?"
ASKED = {
    "LLaVA, two pictures": (LLAVA, Asked("what is <image>\nthe color<image> of a", ((44, 31), (44, 51)))),
    "LLaVA, Q4_0, text alone": (LLAVA, Asked(WORDS, text=TextSpec(width=64, mlp_width=96, kind="Q4_0"))),
    "Gemma 3": (GEMMA, Asked(f"{WORDS}<image>{WORDS}", ((90, 50),))),
    "Qwen2.5-VL": (QWEN, Asked(f"the<image>{WORDS}", ((300, 71),))),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compile the example."""
    path = tmp_path_factory.mktemp("program") / "trace"
    build.build(path)
    return str(path)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return cache(lambda name: ASKED[name][0].write(tmp_path_factory.mktemp("pair"), ASKED[name][1]))


@pytest.mark.parametrize("name", ASKED)
def test_it_is_judged_as_the_adapter_is(program, case, name):
    adapters, its = (engine.run(case(name), n_greedy=5) for engine in (LlamaCpp(), Command(program)))
    assert its.token_ids == adapters.token_ids and its.greedy == adapters.greedy
    stages = {stage: array for stage, array in its.stages.items() if stage != "token_ids"}
    assert list(stages) == list(adapters.stages)
    for stage, array in adapters.stages.items():
        assert stages[stage].dtype == array.dtype and np.array_equal(stages[stage], array), stage
    assert its.about["arithmetic"] == adapters.about["arithmetic"] and not its.chosen
    assert compared(case(name), its, profile="llama.cpp").same


def test_its_report_is_the_adapters(program, case):
    c = case("LLaVA, two pictures")
    want, got = (compared(c, engine.run(c, n_greedy=5), profile="llava") for engine in (LlamaCpp(), Command(program)))
    assert (got.stages, got.findings, got.outcome) == (want.stages, want.findings, want.outcome)
    assert "vision.pos_embd" in [finding.stage for finding in got.findings]


def test_a_fault_in_it_is_named(case, tmp_path, capsys):
    """Another base of the decoder's rope, in what is otherwise the same program."""
    faulty = shutil.copytree(build.SOURCE.parent, tmp_path / "faulty") / build.SOURCE.name
    sound = "params.n_threads = params.n_threads_batch = 1;"
    assert sound in faulty.read_text()
    faulty.write_text(faulty.read_text().replace(sound, f"{sound} params.rope_freq_base = 10100.0f;"))
    build.build(tmp_path / "trace", faulty)
    c = case("LLaVA, two pictures")
    pictures = [word for path in c.images for word in ("--image", str(path))]
    line = ["conform", "-m", str(c.text), "--mmproj", str(c.mmproj), *pictures, "--raw", "-p", c.prompt]
    status = main([*line, "--profile", "llama.cpp", "--against", f"exec:{tmp_path / 'trace'}", "--json"])
    report = json.loads(capsys.readouterr().out)
    stages = [finding["stage"] for finding in report["findings"]]
    assert status == 1 and stages == [f"blk.{i}.{part}_rope" for i in range(3) for part in ("Qcur", "Kcur")]
    assert not any(finding["explained"] for finding in report["findings"])


@pytest.mark.parametrize(
    "command, says",
    [
        ("-m nowhere.gguf -f prompt -o out", "cannot load nowhere.gguf"),
        ("-m nowhere.gguf -o out", "expected -m TEXT.gguf"),
        ("-m nowhere.gguf -f nothing -o out", "cannot read nothing"),
        ("--fast 1", "unknown option --fast"),
    ],
)
def test_it_says_what_is_wrong(program, tmp_path, command, says):
    (tmp_path / "prompt").write_text("x")
    done = subprocess.run([program, *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and says in done.stderr.splitlines()[-1]
