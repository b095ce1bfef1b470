"""`diff` and `conform --against FILE` on files as other programs write them: which stage is named first, and why."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

import llava_ref
from llava_ref.cli import main
from llava_ref.conformance.compare.bounds import Bound
from llava_ref.conformance.compare.comparing import ComparisonProbe
from llava_ref.models.order import place
from llava_ref.tracing.distance import bad_numbers, distance, fitted, rounding
from llava_ref.tracing.trace import ON_REQUEST, At

from ..support.tiny_pair import VICUNA, Tiny, write_pair

PROMPT = "red <image> and blue"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diff")
    write_pair(folder, Tiny(template=VICUNA))
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 33, 3), np.uint8)).save(folder / "p.png")
    return folder


@pytest.fixture(scope="module")
def arrays(folder):
    """Every stage of one run, attention weights too."""
    model = llava_ref.load(folder / "text.gguf", folder / "mmproj.gguf", backend="numpy")
    request = model.raw_request(PROMPT, [folder / "p.png"])
    with model.trace("*", f"*{ON_REQUEST}") as trace:
        model.request_logits(request)
    return {name: np.array(x) for name, x in trace.items()} | {"token_ids": np.array(request.token_ids)}


@pytest.fixture
def tool(folder, arrays, tmp_path, capsys, monkeypatch):
    """Writes what it is given beside the run itself, and runs `diff`, or `conform --against` it."""
    monkeypatch.chdir(tmp_path)
    save_file(arrays, "ours.safetensors")

    def run(theirs, command="diff", *, write=save_file, json_too=True, metadata=None):
        write(theirs, "theirs.safetensors", metadata)
        pair = ["-m", folder / "text.gguf", "--mmproj", folder / "mmproj.gguf", "--image", folder / "p.png"]
        words = ["diff", "ours.safetensors", "theirs.safetensors"]
        if command == "conform":
            words = ["conform", *map(str, pair), "--raw", "-p", PROMPT, "--backend", "numpy", "--against", words[2]]
        status = main([*words, *["--json"] * json_too])
        out, err = capsys.readouterr()
        return status, json.loads(out) if json_too and status < 2 else out, err

    return run


def first_of(command: str, found: dict) -> str | None:
    return found["first"] if command == "diff" else found["findings"][0]["stage"] if found["findings"] else None


def stage(found: dict, name: str) -> dict:
    return next(row for row in found["stages"] if row["name"] == name)


both = pytest.mark.parametrize("command", ["diff", "conform"])


@pytest.mark.parametrize("pictures", [1, 2])
def test_names_sort_as_a_run_computes_them(folder, pictures):
    """Whatever order they come in; blocks by number, not by letter."""
    model = llava_ref.load(folder / "text.gguf", folder / "mmproj.gguf", backend="numpy")
    with model.trace("*", f"*{ON_REQUEST}") as trace:
        model.logits("<image>" * pictures, [folder / "p.png"] * pictures)
        model.logits("red")
    assert sorted(sorted(trace), key=place) == list(trace)


def test_places_of_names_of_other_programs():
    names = (
        "image.rgb vision.blk.2.Qcur vision.blk.10.Qcur vision.post_ln projector.out image.rgb#1 token_ids embd".split()
    )
    names += "blk.2.Qcur blk.2.out blk.10.Qcur result_norm result_output embd#1".split()
    assert sorted(sorted(names), key=place) == names
    strange = ["", "blk", "blk.x.out", "blk.1.outs", "blk.1", "embd#", "embd#x", "model.layers.0", "out", "blk.١.out"]
    assert all(place(name) > place("result_output#99") for name in strange)


@both
@pytest.mark.parametrize("early, late", [("blk.0.attn_norm", "blk.0.Kcur"), ("vision.blk.1.ffn_inp", "embd"),
                                         ("vision.patch_embd", "blk.1.out"), ("token_ids", "blk.0.Vcur")])  # fmt: skip
def test_the_earliest_of_two_wrong_stages_is_named(tool, arrays, command, early, late):
    """safetensors' own `save_file` sorts by type and name, so the late one stands first in the file."""
    wrong = dict(arrays)
    for name in (early, late):
        wrong[name] = arrays[name] + 1 if name == "token_ids" else arrays[name] * np.float32(1.5)
    if early == "token_ids":
        wrong[early] = arrays[early].copy()
        wrong[early][-1] += 1
    status, found, _ = tool(wrong, command)
    assert status == 1 and first_of(command, found) == early
    order = [row["name"] for row in found["stages"]]
    assert order == sorted(order, key=place)


@both
def test_an_absent_stage_is_a_note_and_beats_no_wrong_one(tool, arrays, command):
    theirs = {name: x for name, x in arrays.items() if not name.startswith(("vision.", "blk.0.attn"))}
    theirs |= {"vision.blk.7.out": arrays["embd"], "blk.0.strange": arrays["embd"], "aaa": arrays["embd"]}
    status, found, _ = tool(theirs, command)
    assert status == 0 and first_of(command, found) is None
    for name in ("vision.pixels", "aaa", "vision.blk.7.out"):
        assert stage(found, name)["problem"] is None and stage(found, name)["remark"]
    theirs["blk.1.ffn_up"] = theirs["blk.1.ffn_up"] * 2
    status, found, _ = tool(theirs, command)
    assert status == 1 and first_of(command, found) == "blk.1.ffn_up"


def test_how_many_were_compared_is_said(tool, arrays):
    status, _, err = tool({"embd": arrays["embd"], "strange": arrays["embd"]}, json_too=False)
    assert status == 0 and f"(1 compared, {len(arrays)} in one file only)" in err
    status, _, err = tool({"strange": arrays["embd"]}, json_too=False)
    assert status == 2 and "has no stage in common" in err


def halves(arrays, kind):
    made = {name: torch.tensor(x) for name, x in arrays.items()}
    return {name: x.to(kind) if x.dtype == torch.float32 else x for name, x in made.items()}


KINDS = {"F16": torch.float16, "BF16": torch.bfloat16}


@both
@pytest.mark.parametrize("kind", KINDS)
def test_a_half_precision_recording_is_said_and_its_bounds_are_widened(tool, arrays, command, kind):
    status, found, _ = tool(halves(arrays, KINDS[kind]), command, write=save_torch)
    assert status == 0, found
    row = stage(found, "blk.1.out")
    unit = {"F16": 2**-11, "BF16": 2**-8}[kind]
    allowed = row["tolerance"] - 2e-3 if command == "diff" else row["bound"]["limit"]
    assert kind in row["remark"] and unit / 4 < allowed < 6 * unit
    assert not (stage(found, "image.rgb")["remark"] or "").count(kind)


@both
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_above_the_rounding_is_still_found(tool, arrays, command, kind):
    faulty = arrays | {"blk.0.ffn_up": arrays["blk.0.ffn_up"] * np.float32(1.03)}
    status, found, _ = tool(halves(faulty, KINDS[kind]), command, write=save_torch)
    assert status == 1 and first_of(command, found) == "blk.0.ffn_up"


def test_a_tolerance_that_is_given_is_not_widened(tool, arrays, folder, capsys):
    tool(halves(arrays, torch.float16), write=save_torch)
    assert main(["diff", "ours.safetensors", "theirs.safetensors", "--tolerance", "1e-6", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert stage(found, "blk.1.out")["tolerance"] == 1e-6 and "F16" in stage(found, "blk.1.out")["remark"]


def test_rounding_is_bounded_by_half_the_way_to_the_neighbour():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=2000) * 10.0 ** rng.integers(-9, 4, 2000)).astype(np.float32)
    for kind, dtype in KINDS.items():
        stored = torch.tensor(x).to(dtype).float().numpy()
        relative, most = rounding(stored.astype(np.float16) if kind == "F16" else stored, kind)
        off = np.abs(stored.astype(np.float64) - x)
        assert off.max() <= most and np.linalg.norm(off) / np.linalg.norm(stored) <= relative * (1 + 1e-9)
        assert relative < {"F16": 2**-11, "BF16": 2**-8}[kind]
    assert rounding(np.zeros(3, np.float16), "F16") == (1.0, 2.0**-25), "what is too small for the type is gone"
    assert rounding(np.full(3, np.inf, np.float16), "F16")[1] == 0 and rounding(np.zeros((0, 2)), "BF16") == (0.0, 0.0)


@both
@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_a_bad_number_is_said_with_its_row_and_side(tool, arrays, command, value, word):
    theirs = dict(arrays)
    theirs["blk.1.Vcur"] = arrays["blk.1.Vcur"].copy()
    theirs["blk.1.Vcur"][3, 2:] = value
    status, found, _ = tool(theirs, command)
    side = "theirs.safetensors" if command == "diff" else "the reference"
    assert status == 1 and first_of(command, found) == "blk.1.Vcur"
    assert stage(found, "blk.1.Vcur")["problem"] == f"{word} in {side}, first at row 3, [3, 2]"
    status, out, _ = tool(theirs, command, json_too=False)
    assert status == 1 and f"{word} in {side}, first at row 3, [3, 2]" in out


def test_a_row_of_attention_weights_is_a_position(tool, arrays):
    name = f"blk.0.{ON_REQUEST}"
    theirs = arrays | {name: arrays[name].copy()}
    theirs[name][1, 4, 0] = np.nan
    assert stage(tool(theirs)[1], name)["problem"].endswith("first at row 4, [1, 4, 0]")


def test_the_same_bad_number_on_both_sides_is_a_note_and_the_rest_is_compared():
    x = np.random.default_rng(0).normal(size=(4, 5))
    x[1, 2], x[2, 0], x[3, 3] = np.nan, np.inf, -np.inf
    found = distance(x, x, 1e-4)
    assert found.rel_rms == 0 and found.cosine == pytest.approx(1) and found.first_bad is None
    words, alike = bad_numbers(x, x, ("a", "b"))
    assert alike and words == "NaN in a and NaN in b, first at row 1, [1, 2]"
    y = x.copy()
    y[0, 0] *= 1 + 1e-9
    assert 0 < distance(y, x, 1e-4).rel_rms < 1e-8
    y[2, 0] = -np.inf
    assert distance(y, x, 1e-4).rel_rms == np.inf
    assert bad_numbers(y, x, ("a", "b")) == ("infinity in a and infinity in b, first at row 2, [2, 0]", False)
    assert bad_numbers(np.ones(()), np.ones(()), ("a", "b")) == (None, True)


def test_both_files_bad_at_the_same_place(arrays, tmp_path, capsys):
    bad = arrays | {"blk.1.Vcur": arrays["blk.1.Vcur"] * np.float32(np.nan)}
    save_file(bad, tmp_path / "a"), save_file(bad, tmp_path / "b")
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "NaN in a and NaN in b, first at row 0, [0, 0]" in capsys.readouterr().out


@both
def test_axes_of_one_are_no_difference(tool, arrays, command):
    theirs = {name: x[None] for name, x in arrays.items()}
    theirs["embd"] = arrays["embd"][None, None]
    theirs["blk.0.Vcur"] = arrays["blk.0.Vcur"][:, None]
    status, found, _ = tool(theirs, command)
    assert status == 0, found
    if command == "diff":
        assert "shapes" in stage(found, "blk.0.out")["remark"]
    else:
        assert found["n_compared"] if "n_compared" in found else stage(found, "blk.0.out")["own"]
    theirs["blk.0.out"] = theirs["blk.0.out"] * 2
    assert first_of(command, tool(theirs, command)[1]) == "blk.0.out"


@both
def test_another_type_of_number_is_no_difference(tool, arrays, command):
    """float64, pictures as float32 or int64, ids as int32; what goes on in a forced pass is float32 all the same."""
    theirs = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in arrays.items()}
    theirs |= {"image.rgb": arrays["image.rgb"].astype(np.float32), "image.seen": arrays["image.seen"].astype(np.int64)}
    theirs["token_ids"] = arrays["token_ids"].astype(np.int32)
    status, found, _ = tool(theirs, command)
    assert status == 0, found
    theirs["image.rgb"] = theirs["image.rgb"] + 1
    assert first_of(command, tool(theirs, command)[1]) == "image.rgb"


@both
@pytest.mark.parametrize(
    "change",
    [lambda x: x[:-1], lambda x: np.concatenate([x, x[:2]]), lambda x: x.T.copy(), lambda x: x[:0],
     lambda x: np.array(x.sum()), lambda x: x.ravel(), lambda x: x[:, :-1]],
    ids=["a row less", "two rows more", "transposed", "no rows", "a scalar", "flat", "a column less"],
)  # fmt: skip
def test_another_shape_is_said_with_both(tool, arrays, command, change):
    theirs = arrays | {"blk.0.ffn_up": change(arrays["blk.0.ffn_up"])}
    status, found, _ = tool(theirs, command)
    row = stage(found, "blk.0.ffn_up")
    assert status == 1 and first_of(command, found) == "blk.0.ffn_up" and row["problem"].startswith("shapes differ")
    assert row["shapes"] == [list(arrays["blk.0.ffn_up"].shape), list(theirs["blk.0.ffn_up"].shape)]


def test_an_empty_tensor_on_both_sides(tmp_path, capsys):
    for name in "ab":
        save_file({"embd": np.zeros((0, 4), np.float32), "blk.0.out": np.array(3, np.float32)}, tmp_path / name)
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "empty" in capsys.readouterr().out


def test_a_transposed_one_is_recognised(tool, arrays):
    theirs = arrays | {"blk.0.ffn_up": np.ascontiguousarray(arrays["blk.0.ffn_up"].T)}
    assert "one is the other transposed" in stage(tool(theirs)[1], "blk.0.ffn_up")["problem"]


def raw(path: Path, header: str, body: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + body)


def test_a_file_with_its_own_order_gaps_in_its_header_and_no_metadata(arrays, tmp_path, capsys):
    """As a writer in another language makes it: spaces, any order of names, `#0` for the first run."""
    names = sorted(arrays, reverse=True)
    at, entries, body = 0, {}, b""
    for name in names:
        kind = {"float32": "F32", "uint8": "U8", "int64": "I64"}[arrays[name].dtype.name]
        data = arrays[name].tobytes()
        entries[name] = {"data_offsets": [at, at + len(data)], "shape": arrays[name].shape, "dtype": kind}
        at, body = at + len(data), body + data
    raw(tmp_path / "r", json.dumps(entries, indent=3) + " " * 7, body)
    save_file(arrays, tmp_path / "s")
    assert main(["diff", str(tmp_path / "r"), str(tmp_path / "s")]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert shown == sorted(arrays, key=place)


def test_names_that_share_bytes_or_stand_twice_are_refused(tmp_path, capsys):
    one = '"embd":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    twice, shared = one % (4, 8), (one % (0, 4)).replace("embd", "blk.0.out")
    for name, second, size in (("twice", twice, 8), ("shared", shared, 4)):
        raw(tmp_path / name, "{" + one % (0, 4) + "," + second + "}", b"\0" * size)
        assert main(["diff", str(tmp_path / name), str(tmp_path / name)]) == 2
        assert "not a safetensors file" in capsys.readouterr().err


HEADERS = {
    "diff": [{"names": "blk.*"}, {"names": "{}"}, {"types": "Q8_0"}, {"types": '{"a": "Q99"}'}],
    "conform": [{"generated": "5"}, {"generated": '["x"]'}],
}


@pytest.mark.parametrize("command, metadata", [(name, x) for name in HEADERS for x in HEADERS[name]])
def test_a_header_of_another_kind_is_refused_in_one_line(tool, arrays, command, metadata):
    (key,) = metadata
    theirs = {name: x for name, x in arrays.items() if name != "embd"}  # `names` says whether it was asked for
    status, _, err = tool(theirs, command, metadata=metadata)
    assert status == 2 and err.splitlines()[-1].startswith("error: theirs.safetensors: ") and key in err


@both
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64], ids=str)
def test_a_type_that_cannot_be_compared_is_named(tool, arrays, command, dtype):
    theirs = {name: torch.tensor(x) for name, x in arrays.items()}
    theirs["blk.1.out"] = theirs["blk.1.out"].to(dtype)
    status, _, err = tool(theirs, command, write=save_torch)
    assert status == 2 and "blk.1.out: of type " in err and "F32" in err


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_a_forced_pass_goes_on_in_the_pass_s_own_type(folder, backend, dtype):
    model = llava_ref.load(None, folder / "mmproj.gguf", backend=backend)
    theirs, x = np.ones((3, 4), dtype), model.ops.array(np.zeros((3, 4), np.float32))
    probe = ComparisonProbe({"vision.features": theirs}, lambda name: Bound("rel_rms", 1.0), model, teacher_forced=True)
    y = probe.see(x, At("vision.features", None, 0))
    assert type(y) is type(x) and y.dtype == x.dtype and bool((y == 1).all())


def test_fitted():
    x = np.arange(6).reshape(2, 1, 3)
    assert fitted(x, (2, 3)).shape == (2, 3) and fitted(x, (1, 2, 3, 1)).shape == (1, 2, 3, 1)
    assert fitted(x, (3, 2)) is x and fitted(x, (6,)) is x
