"""`conform` where the answer is known: against this project itself, sound or with one fault planted."""

import json
import math
import sys
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.cli import main
from llava_ref.conformance.compare.bounds import Bound, Tolerances, bound, coarsest, divergence, margin, matmul, widened
from llava_ref.conformance.compare.conform import Conformance, conform
from llava_ref.conformance.engines.reference import Case, Run
from llava_ref.conformance.engines.reference import ReferenceError as Failed
from llava_ref.conformance.engines.this import Recorded, ThisProject
from llava_ref.models.stages import Stage

from ...support.faults import FAULTS, PROMPT, Fault

QUESTION = "What colour is the circle?"
SOUND = Fault("")
RAW = Tolerances("float32", "ggml", False, 100, False)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory, wide):
    """A pair, the case, and what a sound engine of profile llama.cpp makes of it."""
    pair = SOUND.build(tmp_path_factory.mktemp("sound"))
    case = Case(pair.text, pair.mmproj, (wide,), PROMPT)
    return pair, case, ThisProject(backend="numpy", profile="llama.cpp").run(case, n_greedy=5)


def compared(pair, case: Case, run: Run, **settings) -> Conformance:
    return conform(lambda q: llava_ref.load(*pair, quirks=q, **settings), case, run)


def test_a_sound_pair_agrees_at_every_stage(sound):
    pair, case, run = sound
    report = compared((pair.text, pair.mmproj), case, run, backend="torch", profile="llama.cpp")
    assert report.same and not report.findings and len(report.outcome.greedy) == 5
    measured = [stage for stage in report.stages if stage.own is not None]
    assert len(measured) == len(report.stages) - 1  # all but the token ids
    assert [stage.name for stage in report.stages if stage.name not in run.stages] == ["token_ids"]
    assert max(report.outcome.kl) < 1e-9 and report.outcome.top_1 == 1.0
    assert 0 < max(stage.own.rel_rms for stage in measured if stage.own) < 2e-6


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_at_its_stage_and_nowhere_else(sound, tmp_path, monkeypatch, name):
    pair, case, run = sound
    fault = FAULTS[name]
    faulty = fault.build(tmp_path)
    fault.patch(monkeypatch)
    report = compared((faulty.text, faulty.mmproj), case, run, backend="numpy", profile="llama.cpp")
    assert report.findings[0].stage == fault.stage
    assert all(finding.explained == () for finding in report.findings)
    out = [stage.name for stage in report.stages if stage.problem]
    assert all(any(fnmatchcase(name, glob) for glob in fault.only or (fault.stage,)) for name in out), out
    assert not report.same


def test_the_quirks_are_named_each_by_itself(sound):
    pair, case, run = sound
    report = compared((pair.text, pair.mmproj), case, run, backend="numpy", profile="llava")
    found = {finding.stage: finding.explained for finding in report.findings}
    assert found["image.seen"] == ("square=resize-pad",)
    assert found["vision.pos_embd"] == ("class_token=last",)
    assert list(found) == ["image.seen", "vision.pos_embd", "projector.gelu"]
    assert found["projector.gelu"] == ("gelu=tanh",)


@pytest.mark.parametrize(
    "ours, theirs, explained",
    [("convert", "white", ("white",)), ("drop", "white", ("white",)), ("white", "drop", ("convert", "drop"))],
)
def test_transparency_is_named(sound, tmp_path, ours, theirs, explained):
    """Two of the three values are one for a PNG, so either explains the third."""
    pair, case, _ = sound
    path = tmp_path / "transparent.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 61, 4), np.uint8)).save(path)
    case = replace(case, images=(path,))
    run = ThisProject(backend="numpy", quirks={"alpha": theirs}).run(case)

    def load(changed):
        return llava_ref.load(pair.text, pair.mmproj, quirks={"alpha": ours, **changed}, backend="numpy")

    (finding,) = conform(load, case, run).findings
    assert finding.stage == "image.rgb" and finding.explained == tuple(f"alpha={value}" for value in explained)


@pytest.mark.parametrize("ours, theirs, problem", [("stored", "one-less", "the reference has no such stage"),
                                                  ("one-less", "stored", "this run has no such stage")])  # fmt: skip
def test_a_layer_more_or_less_is_explained(tmp_path, wide, ours, theirs, problem):
    pair = replace(SOUND, vision=replace(SOUND.vision, feature_layer=None)).build(tmp_path)
    case = Case(pair.text, pair.mmproj, (wide,), PROMPT)
    run = ThisProject(backend="numpy", quirks={"vit_layers": theirs}).run(case)

    def load(changed):
        quirks = {"vit_layers": ours, **changed}
        return llava_ref.load(pair.text, pair.mmproj, quirks=quirks, backend="numpy")

    (finding,) = conform(load, case, run).findings
    assert finding.stage == "vision.blk.3.layer_inp_normed" and finding.problem == problem
    assert finding.explained == (f"vit_layers={theirs}",)


def test_precision_ggml_is_held_to_its_own_bounds(sound):
    pair, case, _ = sound
    rounded = ThisProject(backend="numpy", precision="ggml", profile="llama.cpp").run(case)
    alike = compared((pair.text, pair.mmproj), case, rounded, backend="torch", precision="ggml", profile="llama.cpp")
    assert alike.same and all(stage.bound.limit <= 2e-6 for stage in alike.stages if stage.kind == "matmul")
    unlike = compared((pair.text, pair.mmproj), case, rounded, backend="torch", profile="llama.cpp")
    assert not unlike.findings
    assert max(stage.own.rel_rms for stage in unlike.stages if stage.own and stage.kind == "table") > 1e-5


def test_other_tokens_leave_no_logits_to_compare(sound):
    pair, case, run = sound
    other = Run(run.name, run.about, run.stages, (*run.token_ids[:-1], 5), run.greedy)
    report = compared((pair.text, pair.mmproj), case, other, backend="numpy", profile="llama.cpp")
    assert report.findings[0].stage == "token_ids" and report.outcome.kl is None
    assert report.findings[0].problem.endswith("the reference has 5")


def test_a_token_we_would_not_choose_is_shown_with_its_margin(sound):
    pair, case, run = sound
    wrong = (run.greedy[0], (run.greedy[1] + 1) % 300, *run.greedy[2:])
    other = Run(run.name, run.about, run.stages, run.token_ids, wrong)
    report = compared((pair.text, pair.mmproj), case, other, backend="numpy", profile="llama.cpp")
    first = report.outcome.disagreements[0]
    assert (first.place, first.ours, first.theirs) == (1, run.greedy[1], wrong[1]) and first.margin > 0
    assert not report.findings and not report.same


def test_two_pictures_and_a_long_prompt(sound, wide, tmp_path):
    pair, _, _ = sound
    case = Case(pair.text, pair.mmproj, (wide, wide), "a <image> b <image>")
    run = ThisProject(backend="numpy", profile="llama.cpp").run(case)
    report = compared((pair.text, pair.mmproj), case, run, backend="torch", profile="llama.cpp")
    assert report.same and "vision.features#1" in {stage.name for stage in report.stages if stage.own}


def test_a_recorded_run(sound, tmp_path):
    pair, case, _ = sound
    path = tmp_path / "t.safetensors"
    files = ["-m", pair.text, "--mmproj", pair.mmproj, "--image", case.images[0]]
    assert main(["trace", *map(str, files), "--raw", "-p", PROMPT, "-n", "3", "-o", str(path)]) == 0
    with pytest.raises(Failed, match="not a safetensors file"):
        Recorded(pair.text).run(case)
    assert main(["trace", *map(str, files), "--raw", "-p", PROMPT, "-o", str(path)]) == 0
    report = compared((pair.text, pair.mmproj), case, Recorded(path).run(case), backend="torch")
    assert report.same and len(report.stages) > 60


def record(path, files, *names, **settings):
    options = [f"--{name}={value}" for name, value in settings.items()]
    globs = [word for name in names for word in ("--names", name)]
    assert main(["trace", *map(str, files), "--raw", "-p", PROMPT, *options, *globs, "-o", str(path)]) == 0
    return Recorded(path)


def test_a_recording_may_hold_as_few_stages_as_it_likes(sound, tmp_path):
    pair, case, _ = sound
    files = ["-m", pair.text, "--mmproj", pair.mmproj, "--image", case.images[0]]
    run = record(tmp_path / "t.safetensors", files, "vision.features", "blk.*.out", backend="numpy").run(case)
    report = compared((pair.text, pair.mmproj), case, run, backend="torch")
    assert report.same and report.n_compared == len(run.stages) and report.outcome.kl is None
    faulty = FAULTS["head permutation"].build(tmp_path)
    report = compared((faulty.text, faulty.mmproj), case, run, backend="numpy")
    (finding,) = report.findings
    assert finding.stage == "blk.1.out", "the first that is recorded behind the fault"


def test_a_stage_answers_for_those_that_a_recording_leaves_out(tmp_path):
    text, mmproj = llava_ref.embedded()  # quantised: without that, the rounding of whole blocks would be a fault
    picture = text.parent / "pictures" / "colour.png"
    case = Case(text, mmproj, (picture,), PROMPT)
    files, names = ["-m", text, "--mmproj", mmproj, "--image", picture], ("vision.*", "embd", "blk.*.out", "result_*")
    run = record(tmp_path / "t.safetensors", files, *names, precision="ggml").run(case)
    report = compared((text, mmproj), case, run, backend="numpy")
    assert report.same, report.findings
    found = {stage.name: stage for stage in report.stages}
    assert 1e-4 < found["blk.0.out"].own.rel_rms < found["blk.0.out"].bound.limit < 0.1
    assert found["vision.features"].bound.limit == 2e-6, "nothing is left out before it"
    assert found["vision.blk.0.attn_out"].bound.limit == bound(stage("matmul"), "F16", RAW).limit


def test_widened_bounds():
    rms, exact = (lambda limit: Bound("rel_rms", limit)), Bound("max_abs", 7.0)
    bounds = {"a": exact, "b": rms(3.0), "c": rms(4.0), "d": rms(1.0), "e": exact}
    assert widened(bounds, set(bounds)) == bounds
    assert widened(bounds, {"c", "d", "e"}) == bounds | {"c": rms(5.0)}
    assert widened(bounds, {"b", "e"}) == bounds | {"e": rms(math.hypot(4, 1))}, "what it is made of is not exact"
    assert widened(bounds, {"e"})["e"].limit == math.hypot(3, 4, 1)


def test_a_reference_that_fails_is_told(sound):
    _, case, _ = sound
    with pytest.raises(Failed, match="profile: 'mine'"):
        ThisProject(profile="mine").run(case)


@pytest.fixture(scope="module")
def embedded_picture():
    text, _ = llava_ref.embedded()
    return str(text.parent / "pictures" / "colour.png")


def test_the_command(embedded_picture, capsys):
    arguments = ["conform", "--image", embedded_picture, "-p", QUESTION, "--against", "this:profile=llama.cpp"]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "vision.pos_embd is the first stage that exceeds its bound" in out
    assert "vanishes with --quirk class_token=last: the place of the class token" in out
    rows = out.partition("\n\n")[2].splitlines()
    assert rows[1].startswith("... ") and rows[1].endswith(" more stages, none over its bound (--all prints every row)")
    at = next(i for i, row in enumerate(rows) if row.startswith("vision.pos_embd "))
    assert rows[at - 1].startswith("vision.patch_embd ") and rows[at + 1].startswith("vision.pre_ln ")
    assert main([*arguments, "--all"]) == 1
    every = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    left_out = [int(row.split()[1]) for row in rows if row.startswith("... ")]
    assert len(every) == len(rows) - len(left_out) + sum(left_out)
    assert {row.split()[0] for row in rows} - {"..."} <= {row.split()[0] for row in every}
    assert main([*arguments, "--profile", "llama.cpp", "--backend", "numpy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] and found["findings"] == [] and found["outcome"]["greedy"]


def test_a_terminal_shows_the_verdict_in_colour(embedded_picture, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    arguments = ["conform", "--image", embedded_picture, "-p", QUESTION, "--against"]
    assert main([*arguments, "this:class_token=last"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("\x1b[31mllava_ref torch") and out.splitlines()[0].endswith("exceeds its bound\x1b[0m")
    assert "\n\x1b[31mvision.pos_embd " in out and out.count("\x1b[31m") == 2
    assert main([*arguments, "this:backend=torch"]) == 0
    same = capsys.readouterr().out
    assert same.startswith("\x1b[32m") and same.endswith("\n--all prints the row of every stage\n")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main([*arguments, "this:class_token=last"]) == 1 and "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "against, says",
    [
        ("ollama", "--against: 'ollama': unknown"),
        ("this:numpy", "--against: 'numpy': expected NAME=VALUE"),
        ("this:nose=long", "quirk: 'nose'"),
        ("this:backend=jax", "backend: 'jax'"),
    ],
)
def test_wrong_references(embedded_picture, capsys, against, says):
    assert main(["conform", "--image", embedded_picture, "-p", QUESTION, "--against", against]) == 2
    err = capsys.readouterr().err
    assert says in err.splitlines()[-1]


def stage(kind, name="blk.0.x"):
    return Stage(name, "T D", kind, None, "", "")


def test_bounds():
    alike, unlike = (
        Tolerances("float32", "float32", False, 100, False),
        Tolerances("float32", "ggml", False, 100, False),
    )
    assert bound(stage("matmul"), "Q4_K", alike).limit == 2e-6 < bound(stage("matmul"), "F16", unlike).limit
    assert bound(stage("matmul"), "Q4_K", unlike).limit == 4e-2 and bound(stage("matmul"), "Q4_0", unlike).limit == 2e-2
    assert bound(stage("matmul", "vision.patch_embd"), "F32", unlike).limit == matmul("F16")
    assert bound(stage("exact", "image.rgb"), None, Tolerances("float32", "ggml", False, 9, True)).limit == 3.0
    assert bound(stage("float", "blk.0.Qcur_rope"), None, unlike).limit > bound(stage("float"), None, unlike).limit
    flash = Tolerances("float32", "ggml", True, 100, False)
    assert bound(stage("attention"), None, flash).limit > bound(stage("attention"), None, unlike).limit
    fast = Tolerances("fast", "float32", False, 100, False)
    assert bound(stage("matmul"), "Q4_K", fast).limit == 7e-4 < bound(stage("attention"), None, fast).limit
    assert bound(stage("matmul"), "BF16", fast).limit == matmul("BF16") == 4e-3
    assert bound(stage("float"), None, fast) == bound(stage("float"), None, alike)
    assert bound(stage("matmul"), "Q4_K", Tolerances("fast", "ggml", False, 100, False)).limit == 4e-2
    assert coarsest({"F32", "Q8_0", "F16"}) == "Q8_0" and coarsest(set()) == "F32"
    kinds = ["F32", "F16", "BF16", "Q8_0", "Q4_K"]
    for measure in (divergence, margin, matmul):
        assert sorted(map(measure, kinds)) == list(map(measure, kinds))
