"""`--against exec:COMMAND`: another program is given the files and writes a trace file. The one here is this project on
numpy, so that only the way there and back is tested."""

import json
import shlex
import sys

import pytest

import llava_ref
from llava_ref.cli import main
from llava_ref.conformance.engines.command import Command
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.engines.reference import ReferenceError as Failed

ENGINE = """
import argparse, json
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
import llava_ref

parser = argparse.ArgumentParser()
parser.add_argument("--fault")
parser.add_argument("-m")
parser.add_argument("--mmproj")
parser.add_argument("--image", action="append", default=[])
parser.add_argument("-f", type=Path)
parser.add_argument("-n", type=int)
parser.add_argument("-o", type=Path)
args = parser.parse_args()
print("what an engine prints is not read")
model = llava_ref.load(args.m, args.mmproj, backend="numpy")
request = model.raw_request(args.f.read_bytes().decode(), [Path(image) for image in args.image])
wrong = {args.fault: lambda x: x * np.float32(1.01)} if args.fault else {}
with model.intervene(wrong), model.trace("*") as trace:
    model.request_logits(request)
ids = np.asarray(request.token_ids, np.int64)
generated = list(model.answer(request, llava_ref.Sampling(), max_tokens=args.n).finish().token_ids)
save_file({**trace, "token_ids": ids}, args.o, {"generated": json.dumps(generated)})
"""
QUESTION = "Farbe? \\u00e4 \\u2603"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("an engine") / "engine.py"
    path.write_text(ENGINE)
    return shlex.join([sys.executable, str(path)])


def found(engine, capsys, *more):
    text, _ = llava_ref.embedded()
    picture = str(text.parent / "pictures" / "colour.png")
    line = ["conform", "-p", f"{QUESTION} <image> and <image>", "--image", picture, "--image", picture, "-n", "3"]
    status = main([*line, "--against", f"exec:{engine}{''.join(f' {word}' for word in more)}", "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_program_that_agrees(engine, capsys):
    status, report = found(engine, capsys)
    assert status == 0 and report["same"] and report["findings"] == []
    assert sum(None not in stage["shapes"] for stage in report["stages"]) > 100
    assert len(report["outcome"]["greedy"]) == 3 and report["reference"] == engine


def test_a_program_with_a_fault(engine, capsys):
    status, report = found(engine, capsys, "--fault", "blk.1.ffn_out")
    assert status == 1 and [finding["stage"] for finding in report["findings"]] == ["blk.1.ffn_out"]


@pytest.mark.parametrize(
    "command, says",
    [
        ("", "--against: exec: no command, expected one as in exec:./engine"),
        ("a 'b", '--against: exec: "a \'b": No closing quotation'),
        ("./no-such-engine x", "./no-such-engine: command: No such file or directory"),
        (
            "sh -c 'echo first >&2; echo no such file >&2; exit 3'",
            "command: ended with exit code 3; last heard: no such",
        ),
        ("sh -c 'kill -SEGV $$'", "command: ended by SIGSEGV; last heard: nothing"),
        ("sh -c true", "sh -c true: -o: the program ended well and wrote no trace file"),
        ("sh -c 'for last; do :; done; echo nonsense > \"$last\"' sh", "trace.safetensors: "),
    ],
)
def test_a_program_that_fails(command, says):
    text, mmproj = llava_ref.embedded()
    with pytest.raises(Failed) as caught:
        Command(command).run(Case(text, mmproj, (), "x"))
    assert says in str(caught.value)


def test_a_program_that_hangs():
    text, mmproj = llava_ref.embedded()
    with pytest.raises(Failed, match="time: no answer after 0.1 s"):
        Command("sh -c 'exec sleep 60'", timeout=0.1).run(Case(text, mmproj, (), "x"))
