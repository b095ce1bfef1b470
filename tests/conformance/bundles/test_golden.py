"""The published golden bundles: they are what is made now, whatever is wrong with one is found, and the page about them
is true."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from PIL import Image

import llava_ref
from llava_ref.conformance.bundles import case as golden_case
from llava_ref.conformance.bundles import cli as golden
from llava_ref.conformance.bundles import recipes as golden_bundles
from llava_ref.conformance.bundles.bundle import WORDS
from llava_ref.conformance.bundles.cli import check, main, make
from llava_ref.conformance.bundles.pictures import picture, png
from llava_ref.conformance.pairs.random_blocks import KINDS
from llava_ref.conformance.pairs.vocabulary import n_vocab
from llava_ref.tracing.tracefile import TraceFile, Writer

ROOT = Path(__file__).parents[3]
SET = ROOT / "conformance" / "golden"
BUNDLES = {bundle.name: bundle for bundle in golden_bundles.bundles()}


def case_of(name):
    return json.loads((SET / name / "case.json").read_text("utf-8"))


@pytest.fixture
def copied(tmp_path):
    """A set of some bundles, free to be spoiled."""

    def copy(*names):
        manifest = json.loads((SET / "manifest.json").read_text("utf-8"))
        manifest["bundles"] = {name: manifest["bundles"][name] for name in names}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        for name in names:
            shutil.copytree(SET / name, tmp_path / name)
        return tmp_path, [BUNDLES[name] for name in names]

    return copy


def test_the_published_set_is_what_is_made_now():
    assert check(SET, list(BUNDLES.values())) == []


def test_every_bundle_is_confirmed_by_another_engine():
    rows = json.loads((SET / "manifest.json").read_text("utf-8"))["bundles"]
    assert list(rows) == list(BUNDLES) and {path.name for path in SET.iterdir() if path.is_dir()} == set(rows)
    for name, row in rows.items():
        assert row["confirmed"], name
        for by in row["confirmed"]:
            assert 0 < by["worst"] < by["limit"] and by["stages"] >= 8, name
            assert by["alone"] is None or 0 < by["alone"] < 2e-6, name
    total = sum(path.stat().st_size for path in SET.rglob("*"))
    assert total < 20e6  # a wheel has none of it, but a clone has: a family is worth two pairs of 0.3 to 1 MB, no more


def test_every_type_is_in_both_files():
    types = {half: {t.tensor_type.name for name in BUNDLES for t in GGUFReader(SET / name / half).tensors}
             for half in ("text.gguf", "mmproj.gguf")}  # fmt: skip
    assert types == {"text.gguf": set(KINDS), "mmproj.gguf": set(KINDS)}
    for kind in KINDS:
        assert case_of(f"type-{kind.lower()}")["types"]["blk.0.ffn_up"] == kind
        assert case_of(f"type-{kind.lower()}")["types"]["vision.blk.0.ffn_out"] == kind


def test_bounds_follow_the_coarsest_type_so_far():
    row = {name: bound["whole"]["ggml"] for name, bound in case_of("type-q4_k")["bounds"].items()}
    assert (row["vision.pixels"], row["vision.patch_embd"], row["vision.blk.0.layer_out"]) == (1e-6, 5e-3, 0.1)
    bounds = case_of("llava-wide")["bounds"]
    assert bounds["embd"]["whole"]["measure"] == "rel_rms" and bounds["embd"]["alone"]["measure"] == "max_abs"
    assert bounds["blk.0.Qcur"] == {
        "whole": {"measure": "rel_rms", "float32": 2e-5, "ggml": 5e-3},
        "alone": {"measure": "rel_rms", "float32": 2e-6, "ggml": 2e-6},
    }
    kinds = ("F32", "F16", "BF16", "Q8_0", "NVFP4", "IQ1_S")
    assert [golden_case.whole(kind) for kind in kinds] == [5e-3, 5e-3, 2e-2, 6e-2, 6e-2, 0.1]


# Files made from another specification: bundle, changes of the decoder and of the tower, first stage that differs.
FAULTS = {
    "rope base 1 % off": ("llava-wide", {"rope_base": 10100.0}, {}, "blk.0.Qcur_rope"),
    "eps of the decoder": ("rope-linear-eps", {"eps": 0.045}, {}, "blk.0.attn_norm"),
    "eps of the tower": ("rope-linear-eps", {}, {"eps": 0.045}, "vision.pre_ln"),
    "no scaling": ("rope-yarn-gelu", {"rope_scaling": None}, {}, "blk.0.Qcur_rope"),
    "no divisors": ("rope-divisors-two-pictures", {"rope_divisors": False}, {}, "blk.0.Qcur_rope"),
    "no window": ("window", {"window": None}, {}, "blk.0.kq_soft_max"),
    "another GELU": ("rope-yarn-gelu", {}, {"use_gelu": False}, "vision.blk.0.ffn_act"),
    "a block more": ("rope-divisors-two-pictures", {}, {"feature_layer": 2}, "vision.features"),
    "another type": ("type-q5_1", {"kind": "Q5_0"}, {}, "embd"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_at_its_stage(copied, fault):
    name, text, vision, stage = FAULTS[fault]
    folder, (bundle,) = copied(name)
    make(folder / name, replace(bundle, text=replace(bundle.text, **text), vision=replace(bundle.vision, **vision)))
    problems = check(folder, [bundle])
    half = "text.gguf" if text else "mmproj.gguf"
    assert f"{name}: {half} is not the one made now" in problems
    assert f"{name}: {half} is not the one in case.json" in problems
    first = next(problem for problem in problems if "first stage" in problem)
    assert first.startswith(
        f"{name}: profile {bundle.profiles[0]}: {stage} is the first stage that exceeds its bound: rel rms "
    )


@pytest.mark.parametrize(
    "name, tensor, stage", [("type-iq2_xs", "blk.0.ffn_up.weight", "blk.0.out"),
                            ("type-tq1_0", "v.blk.0.ffn_down.weight", "vision.blk.0.layer_out"),
                            ("multi-query-tied", "blk.1.attn_k.bias", "blk.1.Kcur")])  # fmt: skip
def test_one_byte_of_a_weight(copied, name, tensor, stage):
    folder, (bundle,) = copied(name)
    path = folder / name / ("mmproj.gguf" if tensor.startswith("v.") else "text.gguf")
    found = next(t for t in GGUFReader(path).tensors if t.name == tensor)
    data, at = bytearray(path.read_bytes()), int(found.data_offset) + 3
    data[at] ^= 0x02
    del found
    path.write_bytes(data)
    problems = check(folder, [bundle])
    assert problems[:2] == [f"{name}: {path.name} is not the one {where}" for where in ("in case.json", "made now")]
    assert f"{stage} is the first stage that exceeds its bound" in problems[2]


def test_stages_and_facts_that_were_changed(copied):
    names = "multi-query-tied", "window", "hf-wide"
    folder, chosen = copied(*names)
    assert check(folder, chosen) == []
    trace = TraceFile(folder / names[0] / "stages.safetensors")
    with Writer(folder / names[0] / "new.safetensors") as writer:
        for stage, array in trace.items():
            if stage != "blk.1.Vcur":
                writer.add(stage, array * np.float32(1 + 3e-5) if stage == "vision.pixels" else array)
        writer.finish(trace.about)
    (folder / names[0] / "new.safetensors").rename(folder / names[0] / "stages.safetensors")
    for name, key, value in ((names[1], "greedy", [1, 2]), (names[2], "margins", [0.1] * 6)):
        case = json.loads((folder / name / "case.json").read_text("utf-8")) | {key: value}
        (folder / name / "case.json").write_text(json.dumps(case))
    problems = "\n".join(check(folder, chosen))
    assert re.search("multi-query-tied: stages.safetensors is not the one in case.json", problems)
    assert re.search(
        "multi-query-tied: profile llava: vision.pixels is the first stage that exceeds its bound: max abs", problems
    )
    assert re.search("window: case.json is not the one in the manifest", problems)
    assert re.search(r"window: profile llava: case.json: greedy is \[\d+, .*, the file has \[1, 2\]", problems)
    assert re.search(r"hf-wide: profile hf: case.json: margins are \[.*, the file has \[0.1, 0.1", problems)


def test_files_that_are_gone_or_no_files(copied):
    folder, chosen = copied("type-q4_0", "type-q8_0", "type-f16", "type-iq1_m")
    (folder / "type-q4_0" / "own.png").unlink()
    (folder / "type-q8_0" / "text.gguf").write_bytes(b"GGUF\n")
    (folder / "type-f16" / "case.json").write_text("{")
    problems = check(folder, [*chosen[:3], BUNDLES["window"]])
    assert [problem.partition(":")[0] for problem in problems] == [
        "type-iq1_m", "type-q4_0", *["type-q8_0"] * 3, *["type-f16"] * 2, "window",
    ]  # fmt: skip
    assert problems[0].endswith("not a bundle of this program") and problems[-1].endswith("missing in the manifest")
    assert "own.png" in problems[1] and "text.gguf: version" in problems[4] and "Expecting property name" in problems[6]


def test_commands(tmp_path, monkeypatch, capsys):
    chosen = [BUNDLES["type-iq1_s"], BUNDLES["llama.cpp-tall"]]
    monkeypatch.setattr(golden, "bundles", lambda: chosen)
    assert main([str(tmp_path)]) == 0 and main(["--check", str(tmp_path)]) == 0
    assert "2 bundles, all as they should be" in capsys.readouterr().out
    for bundle in chosen:
        for path in (SET / bundle.name).glob("*.[gp]*"):
            assert (tmp_path / bundle.name / path.name).read_bytes() == path.read_bytes()
    (tmp_path / "llama.cpp-tall" / "tall.png").write_bytes((SET / "multi-query-tied" / "tall.png").read_bytes())
    assert main(["--check", str(tmp_path)]) == 1
    assert (
        "llama.cpp-tall: profile llama.cpp: image.rgb is the first stage that exceeds its bound"
        in capsys.readouterr().out
    )
    (tmp_path / "manifest.json").write_text('{"format": "something else"}')
    assert main(["--check", str(tmp_path)]) == 1 and "'something else', expected" in capsys.readouterr().err
    assert main(["--check", str(tmp_path / "absent")]) == 1 and "manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "shape", [(1, 1, 3), (2, 3, 4), (53, 22, 4), (27, 61, 3), (150, 147, 3)]
)  # the last: two blocks
def test_pictures(tmp_path, shape):
    made = picture(*shape, seed=5)
    (tmp_path / "a.png").write_bytes(png(made))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), made)
    assert shape[0] < 3 or (made != picture(*shape, seed=6)).mean() > 0.9


def test_the_figures_of_the_page():
    page = (ROOT / "docs" / "golden.md").read_text()
    rows = json.loads((SET / "manifest.json").read_text("utf-8"))["bundles"]
    said = [by | {"engine": by["by"].split()[0]} for row in rows.values() for by in row["confirmed"]]
    by_llama, by_hf = ([by for by in said if by["engine"] == engine] for engine in ("llama.cpp", "transformers"))
    worst = max(by["alone"] for by in by_llama), max(by["worst"] for by in by_hf)
    alone, whole = (f"{error:.1e}".replace("e-0", "e-") for error in worst)
    megabytes = sum(path.stat().st_size for path in SET.rglob("*") if path.is_file()) / 1e6
    for figure in (
        f"holds {len(BUNDLES)} small pairs",
        f"they are {megabytes:.1f} MB",
        f"of {n_vocab(WORDS)} tokens",
        f"{by_llama[0]['by'].removesuffix(' EXACT')} ran {len(by_llama)} of them",
        f"agrees to {alone}",
        f"{by_hf[0]['by'].removesuffix(' float32')} ran the other {len(by_hf)} in float32",
        f"agrees to {whole}",
    ):
        assert figure in page, figure
    listed = set(re.findall(r"`([a-z][a-z0-9._-]+)`", page))
    assert {name for name in BUNDLES if not name.startswith("type-")} <= listed


def python_of(name):
    return "\n".join(
        re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / name).read_text(), re.DOTALL | re.MULTILINE)
    )


def test_the_example_of_the_page(tmp_path, monkeypatch):
    """It passes with an engine that is right, and names the first stage of one that is not."""
    for name in ("rope-divisors-two-pictures", "type-q6_k", "llama.cpp-wide"):
        (tmp_path / "golden" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "golden" / name).symlink_to(SET / name)
    monkeypatch.chdir(tmp_path)

    def engine(quirks):
        def run(folder, prompt, images):
            model = llava_ref.load(folder / "text.gguf", folder / "mmproj.gguf", backend="numpy", quirks=quirks)
            request = model.raw_request(prompt, [folder / image for image in images])
            with model.trace() as trace:
                model.request_logits(request)
            return list(request.token_ids), dict(trace)

        return run

    code = compile(python_of("golden.md"), "golden.md", "exec")
    exec(code, {"run_my_engine": engine({})})
    with pytest.raises(AssertionError, match=r"rope-divisors-two-pictures: projector\.gelu is off by .*allowed 2e-05"):
        exec(code, {"run_my_engine": engine({"gelu": "tanh"})})
