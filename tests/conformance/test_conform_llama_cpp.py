"""`conform` against llama.cpp itself: the embedded pair, sound, and a random one with eleven faults planted in turn."""

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.cli import main
from llava_ref.conformance.compare.conform import Conformance, conform
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.llama_cpp.oracle import DEFAULTS, EXACT
from llava_ref.conformance.engines.reference import Case

from ..support.faults import FAULTS, PROMPT, Fault

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
TEXT, MMPROJ = llava_ref.embedded()
OWN_SIZE = TEXT.parent / "pictures" / "colour.png"
QUESTION = "USER: <image>\nWhat colour is the circle? ASSISTANT:"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Path]:
    """Save two pictures: one of the model's own size, a wide one."""
    folder = tmp_path_factory.mktemp("pictures")
    with Image.open(OWN_SIZE) as picture:
        own = picture.resize((64, 64))
    own.save(folder / "own.png")
    wide = Image.new("RGB", (150, 90), (250, 250, 250))
    wide.paste(own, (40, 13))
    wide.save(folder / "wide.png")
    return {"own": folder / "own.png", "wide": folder / "wide.png"}


def against(settings: oracle.Settings, picture: Path, **ours) -> Conformance:
    case = Case(TEXT, MMPROJ, (picture,), QUESTION)
    quirks = ours.pop("quirks", {})
    run = LlamaCpp(settings).run(case, n_greedy=4)
    return conform(lambda q: llava_ref.load(TEXT, MMPROJ, quirks=quirks | q, **ours), case, run)


def test_with_a_picture_of_its_own_size_the_class_token_differs_first(pictures):
    (finding,) = against(EXACT, pictures["own"], profile="llava").findings
    assert finding.stage == "vision.pos_embd" and finding.explained == ("class_token=last",)


def test_with_a_wide_picture_the_padding_and_the_class_token_differ_each_by_itself(pictures):
    padding, order = against(EXACT, pictures["wide"], profile="llava").findings
    assert padding.stage == "vision.pixels" and padding.explained == ("square=resize-pad",)
    assert order.stage == "vision.pos_embd" and order.explained == ("class_token=last",)


@pytest.mark.parametrize("size", ["own", "wide"])
def test_in_its_own_profile_nothing_is_over_its_threshold(pictures, within, size):
    report = against(EXACT, pictures[size], profile="llama.cpp")
    assert report.same and len(report.outcome.greedy) == 2
    assert len([stage for stage in report.stages if stage.own]) == 120
    within("conform, embedded pair: KL of exact and llama.cpp, nats", max(report.outcome.kl), 0.08)


@pytest.mark.parametrize(
    "settings, quirks",
    [
        (EXACT, {"kv_cache": "f32", "flash_attention": "off"}),
        (replace(EXACT, cache_type=1), {"flash_attention": "off"}),
        (DEFAULTS, {}),
    ],
    ids=["EXACT", "float16 cache", "DEFAULTS"],
)
def test_in_precision_ggml_every_stage_agrees_far_more_closely(pictures, within, settings, quirks):
    report = against(settings, pictures["wide"], profile="llama.cpp", precision="ggml", quirks=quirks)
    assert not report.findings
    for stage in report.stages:
        if stage.own and stage.kind == "matmul":
            within("conform, embedded pair: a product in precision ggml", stage.own.rel_rms, 2e-6)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    pair, picture = Fault("").build(folder), folder / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)).save(picture)
    case = Case(pair.text, pair.mmproj, (picture,), PROMPT)
    return pair, case, LlamaCpp().run(case, n_greedy=5)


@pytest.mark.parametrize("precision", ["exact", "ggml"])
def test_a_sound_pair(sound, precision):
    pair, case, run = sound
    report = _compare(pair, case, run, precision)
    assert report.same, report.findings


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_at_its_stage_and_nowhere_else(sound, tmp_path, monkeypatch, name):
    _, case, run = sound
    fault = FAULTS[name]
    faulty = fault.build(tmp_path)
    fault.patch(monkeypatch)
    report = _compare(faulty, case, run, "exact")
    stage = fault.stage.replace("image.seen", "vision.pixels")  # llama.cpp does not show its squared picture
    assert report.findings[0].stage == stage and report.findings[0].explained == ()
    out = [result.name for result in report.stages if result.problem]
    assert all(any(fnmatchcase(name, glob) for glob in fault.only or (stage,)) for name in out), out


def _compare(pair, case, run, precision) -> Conformance:
    # A random model's float32 pair in precision ggml follows the settings of EXACT.
    quirks = {"kv_cache": "f32", "flash_attention": "off"}
    return conform(
        lambda q: llava_ref.load(
            pair.text, pair.mmproj, profile="llama.cpp", precision=precision, quirks=quirks | q, backend="numpy"
        ),
        case,
        run,
    )


def test_the_command_exits_with_what_it_found(capsys):
    arguments = ["conform", "--image", str(OWN_SIZE), "-p", "What colour is the circle?", "--against", "llama.cpp"]
    assert main([*arguments, "--profile", "llama.cpp"]) == 0
    assert "no stage exceeds its bound" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "vanishes with --quirk class_token=last" in capsys.readouterr().out
