"""Trace files, and the two commands that write and compare them."""

import json
import struct

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import llava_ref
from llava_ref.cli import main
from llava_ref.errors import ParameterError
from llava_ref.tools.diff import default_tolerance
from llava_ref.tracing.tracefile import TraceFile, Writer, hashes

from ..support.helpers import rand
from ..support.tiny_pair import VICUNA, Tiny, write_pair


def test_pieces_are_joined_in_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    pieces = {"blk.0.out": [rand(3, 5), rand(1, 5)], "image.rgb": [np.arange(24, dtype=np.uint8).reshape(2, 4, 3)]}
    weights = [rand(2, 3, 3), rand(2, 1, 4)]
    with Writer(path) as writer:
        for name, arrays in pieces.items():
            writer.add(name, arrays[0])
        writer.add("blk.0.kq_soft_max", weights[0])
        writer.add("blk.0.out", pieces["blk.0.out"][1])
        writer.add("blk.0.kq_soft_max", weights[1])
        shapes = writer.finish({"profile": "llava"})
    found = load_file(path)
    assert shapes == {name: array.shape for name, array in found.items()}
    assert (found["blk.0.out"] == np.concatenate(pieces["blk.0.out"])).all()
    assert (found["image.rgb"] == pieces["image.rgb"][0]).all()
    assert found["blk.0.kq_soft_max"].shape == (2, 4, 4) and (found["blk.0.kq_soft_max"][:, :3, 3] == 0).all()
    trace = TraceFile(path)
    assert list(trace) == ["blk.0.out", "image.rgb", "blk.0.kq_soft_max"] and trace.about == {"profile": "llava"}
    assert (trace["blk.0.out"] == found["blk.0.out"]).all() and len(trace) == 3


def test_nothing_is_left_of_a_trace_that_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "a.safetensors") as writer:
        writer.add("embd", rand(3, 5))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_body_on_disk_not_in_memory(tmp_path):
    writer = Writer(tmp_path / "a.safetensors")
    writer.add("embd", rand(3, 5))
    assert not any(isinstance(value, np.ndarray) for value in vars(writer).values())
    assert writer._body.seek(0, 2) == 60
    writer._body.close()


@pytest.mark.parametrize("content", [b"", b"GGUF" * 9, struct.pack("<Q", 1 << 60) + b"{}", b"\x02" + bytes(7) + b"{}x"])
def test_what_is_no_trace_file_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ParameterError, match="not a safetensors file"):
        TraceFile(tmp_path / "a")
    with pytest.raises(ParameterError, match="is not there"):
        TraceFile(tmp_path / "b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    write_pair(folder, Tiny(template=VICUNA))
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 33, 3), np.uint8)).save(folder / "p.png")
    return folder


@pytest.fixture
def cli(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)

    def run(*arguments):
        status = main(list(arguments))
        return status, *capsys.readouterr()

    return run


PAIR = ["-m", "text.gguf", "--mmproj", "mmproj.gguf", "--image", "p.png", "-p", "red"]


def test_the_command_writes_what_python_sees(cli, folder):
    status, out, _ = cli("trace", *PAIR, "-o", "a.safetensors", "--names", "blk.*.out", "--names", "vision.*", "--json")
    assert status == 0
    trace = TraceFile(folder / "a.safetensors")
    assert json.loads(out)["tensors"] == {name: list(trace[name].shape) for name in trace}
    model = llava_ref.load(folder / "text.gguf", folder / "mmproj.gguf")
    question = [{"type": "image", "image": folder / "p.png"}, {"type": "text", "text": "red"}]
    request = model.request([{"role": "user", "content": question}])
    with model.trace("blk.*.out", "vision.*") as expected:
        model.request_logits(request)
    assert list(trace) == [*expected, "token_ids"]
    assert all((trace[name] == expected[name]).all() for name in expected)
    assert trace["token_ids"].tolist() == request.token_ids
    about = trace.about
    assert about["profile"] == "llava" and about["precision"] == "exact" and about["prompt"] == request.prompt.shown
    assert set(json.loads(about["files"])) == {"text.gguf", "mmproj.gguf", "p.png"}
    assert len(json.loads(about["files"])["p.png"]) == 64 and json.loads(about["quirks"])["class_token"] == "first"
    assert json.loads(about["types"])["blk.0.Qcur"] == "F32" and json.loads(about["names"]) == ["blk.*.out", "vision.*"]


def test_files_of_one_name_are_all_listed(tmp_path):
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "y.png"]
    for i, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([i]))
    listed = hashes(paths)
    assert list(listed) == [str(paths[0]), str(paths[1]), "y.png"] and len(set(listed.values())) == 3


def test_generated_tokens_are_traced(cli, folder):
    assert cli("trace", *PAIR, "-n", "3", "-o", "g.safetensors", "--names", "embd")[0] == 0
    trace = TraceFile(folder / "g.safetensors")
    generated = json.loads(trace.about["generated"])
    assert len(trace["embd"]) == len(trace["token_ids"]) and len(generated) in (1, 2, 3)
    assert trace["token_ids"].tolist()[len(trace["embd"]) - len(generated) + 1 :] == generated[:-1]


def test_the_list_of_stages(cli):
    status, out, _ = cli("trace", "--list", "-m", "text.gguf", "--mmproj", "mmproj.gguf")
    assert status == 0 and out.splitlines()[0].split() == ["stage", "shape", "llama.cpp", "transformers"]
    assert any(line.startswith("blk.0.Qcur_rope ") and "Qcur-0 (ROPE)" in line for line in out.splitlines())
    rows = json.loads(cli("trace", "--list", "--json", "-m", "text.gguf")[1])
    assert rows[0]["name"] == "embd" and rows[-1]["name"] == "result_output"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["-p", "red"], "--output: missing"),
        (["-o", "x.safetensors"], "--prompt: missing"),
        (["-p", "red", "-o", "x.safetensors", "--names", "blk.7"], "stage: 'blk.7': fits none"),
        (["-p", "red", "-o", "x.safetensors", "-n", "-1"], "--max-tokens: -1"),
        (["-p", "red", "-o", "nowhere/x.safetensors"], "its folder does not exist"),
    ],
)
def test_wrong_arguments(cli, folder, arguments, says):
    status, _, err = cli("trace", "-m", "text.gguf", *arguments)
    assert status == 2 and says in err and err.count("\n") == 1
    assert not (folder / "x.safetensors").exists()


@pytest.fixture(scope="module")
def traces(folder):
    """One run by torch, by numpy, by another profile, and one with few names."""
    settings = {
        "torch": [],
        "numpy": ["--backend", "numpy"],
        "llama": ["--profile", "llama.cpp"],
        "few": ["--names", "blk.*.out"],
    }
    for name, more in settings.items():
        pair = [
            "-m",
            str(folder / "text.gguf"),
            "--mmproj",
            str(folder / "mmproj.gguf"),
            "--image",
            str(folder / "p.png"),
        ]
        assert main(["trace", *pair, "-p", "red", "-o", str(folder / f"{name}.safetensors"), *more]) == 0
    return folder


def test_two_backends_are_the_same(cli, traces):
    status, out, err = cli("diff", "torch.safetensors", "numpy.safetensors")
    assert status == 0 and "every stage that both have agrees" in err and len(out.splitlines()) > 40
    assert cli("diff", "torch.safetensors", "numpy.safetensors", "--tolerance", "0")[0] == 1


def test_the_first_stage_that_is_out_is_named(cli, traces):
    status, out, err = cli("diff", "torch.safetensors", "llama.safetensors")
    assert status == 1 and "image.seen is the first stage that exceeds its tolerance" in err
    found = json.loads(cli("diff", "torch.safetensors", "llama.safetensors", "--json")[1])
    assert found["first"] == "image.seen" and not found["same"]
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert stages["image.rgb"]["problem"] is None and stages["vision.pixels"]["first_bad"] is not None
    missing = [name for name, stage in stages.items() if "only in torch.safetensors" in (stage["remark"] or "")]
    assert missing and all(name.startswith("vision.blk.") and stages[name]["problem"] is None for name in missing)


def test_stages_that_were_not_asked_for_do_not_count(cli, traces):
    status, out, _ = cli("diff", "torch.safetensors", "few.safetensors")
    assert status == 0 and "few.safetensors was not asked for it" in out


def test_a_changed_number_is_found(cli, traces, folder):
    arrays = load_file(folder / "torch.safetensors")
    arrays["blk.1.ffn_up"] = arrays["blk.1.ffn_up"].copy()
    arrays["blk.1.ffn_up"][2, 5] += 1
    save_file(arrays, folder / "other.safetensors")
    found = json.loads(cli("diff", "torch.safetensors", "other.safetensors", "--json")[1])
    assert found["first"] == "blk.1.ffn_up"
    (stage,) = [stage for stage in found["stages"] if stage["problem"]]
    assert stage["worst"] == stage["first_bad"] == [2, 5] and abs(stage["max_abs"] - 1) < 1e-6


def test_nan_is_never_the_same(cli, traces, folder):
    arrays = load_file(folder / "torch.safetensors")
    arrays["embd"] = np.full_like(arrays["embd"], np.nan)
    save_file(arrays, folder / "nan.safetensors")
    status, out, _ = cli("diff", "torch.safetensors", "nan.safetensors", "--json")
    assert status == 1 and json.loads(out)["first"] == "embd"
    assert cli("diff", "nan.safetensors", "nan.safetensors")[0] == 0


def test_diff_refuses(cli, traces, folder):
    save_file({"something": rand(2)}, folder / "strange.safetensors")
    assert "has no stage in common" in cli("diff", "torch.safetensors", "strange.safetensors")[2]
    assert "--tolerance: nan" in cli("diff", "torch.safetensors", "numpy.safetensors", "--tolerance", "nan")[2]
    assert cli("diff", "torch.safetensors", "missing.safetensors")[0] == 2


@pytest.mark.parametrize("kinds, tolerance", [({}, 2e-3), ({"a": "F16"}, 5e-3), ({"a": "Q8_0"}, 6e-2),
                                              ({"a": "Q8_0", "b": "Q4_K"}, 1e-1), ({"b": "BF16"}, 2e-2)])  # fmt: skip
def test_the_tolerance_is_that_of_the_coarsest_weights(tmp_path, kinds, tolerance):
    about = {"format": "llava_ref trace 1", "precision": "exact", "types": json.dumps(kinds)}
    save_file({"embd": rand(2)}, tmp_path / "ours", metadata=about)
    save_file({"embd": rand(2)}, tmp_path / "theirs")
    ours, theirs = TraceFile(tmp_path / "ours"), TraceFile(tmp_path / "theirs")
    assert default_tolerance(ours, theirs) == tolerance
    assert default_tolerance(ours, ours) == 1e-4
