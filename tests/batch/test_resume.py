"""An interrupted batch goes on: no line is lost or doubled, wherever the file ends; and only the same batch goes on."""

import json
import os
import random
import subprocess
import sys
from contextlib import closing

import pytest

from llava_ref.api.limits import Limits
from llava_ref.batch.answering import URLS
from llava_ref.batch.lines import Lines
from llava_ref.batch.output import WINDOW, AnswerFile, InOrder

from ..api.running import picture
from .requests import GOOD, line, say, see, write


def tasks(path, key="key"):
    return Lines(path, key, Limits(), URLS)


def answered(task):
    """A line as short as can be, so that every byte of a file can be its last."""
    response = {"status_code": 200, "body": {}} if task.number % 2 else None
    fields = {"id": f"batch_req_{task.id}", "response": response, "error": {"message": "odd"}}
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def test_a_file_may_end_at_any_byte(tmp_path):
    lines = tasks(write(tmp_path / "in.jsonl", [line(str(i), say("Hi")) for i in range(4)]))
    whole = b"".join(map(answered, lines))
    path = tmp_path / "out.jsonl"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with AnswerFile(path) as file:
            left = list(file.left(lines))
            assert len(left) == 4 - whole[:cut].count(b"\n") == 4 - file.n_lines
            for task in left:
                file.write(answered(task))
            assert (file.n_answered, file.n_failed) == (2, 2)
        assert path.read_bytes() == whole, cut


def test_a_half_line_may_be_longer_than_the_line_that_takes_its_place(tmp_path):
    """As after a picture at a URL that could be had the first time."""
    lines = tasks(write(tmp_path / "in.jsonl", [line("a", say("Hi")), line("b", say("Hi"))]))
    first, second = map(answered, lines)
    path = tmp_path / "out.jsonl"
    path.write_bytes(first + second[:-1] + b"x" * 500)
    with AnswerFile(path) as file:
        (task,) = file.left(lines)
        file.write(answered(task))
    assert path.read_bytes() == first + second


RUNS = """
import os, random, signal, sys, time
from llava_ref.cli import main
import llava_ref.batch.answering, llava_ref.loading, llava_ref.tools.batch, torch  # a child has them already
os.chdir(sys.argv[1])
kills, chance = 0, random.Random(int(sys.argv[2]))
while True:
    child = os.fork()
    if child == 0:
        os._exit(main(["batch", "in.jsonl", "-o", "out.jsonl", "-t", "1"]))
    there = os.path.exists("out.jsonl") and os.path.getsize("out.jsonl")
    end = there + chance.randrange(1, 4000)
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if kills < 5 and os.path.exists("out.jsonl") and os.path.getsize("out.jsonl") >= end:
            os.kill(child, signal.SIGKILL)
        time.sleep(chance.random() / 500)
    if os.WIFEXITED(done[1]):
        print(kills, os.WEXITSTATUS(done[1]))
        break
    kills += 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_killed_at_random_moments(batch):
    lines = [line(f"{i}", say("Hello", temperature=1.0)) for i in range(30)]
    lines[15:15] = ["{", GOOD[0]]
    assert batch(lines)[0] == 1
    whole = batch.out.read_bytes()
    batch.out.unlink()
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(batch.folder), "5"], capture_output=True, text=True, timeout=300
    )
    *_, last = done.stdout.splitlines()
    kills, status = map(int, last.split())
    assert (kills >= 3, status) == (True, 1), done.stderr[-2000:]
    assert batch.out.read_bytes() == whole and done.stderr.count("goes on behind") == kills


def test_a_batch_that_is_done_stays_as_it_is(batch):
    batch(GOOD[2:4])
    before, stamp = batch.out.read_bytes(), batch.out.stat().st_mtime_ns
    status, out, err = batch(None, "--json")
    assert (status, json.loads(out)) == (0, {"total": 2, "completed": 2, "failed": 0, "resumed": 2})
    assert err == "out.jsonl: goes on behind 2 lines\n"
    assert (batch.out.read_bytes(), batch.out.stat().st_mtime_ns) == (before, stamp)


HI = [line(str(i), say("Hi")) for i in range(3)]
CHANGES = {  # what is changed -> lines, options, the line that no longer fits
    "the first request": ([line("0", say("Ho")), *HI[1:]], (), 1),
    "the second request": ([HI[0], line("1", say("Ho")), HI[2]], (), 2),
    "its id": ([HI[0], line("one", say("Hi")), HI[2]], (), 2),
    "the order": ([HI[1], HI[0], HI[2]], (), 1),
    "one fewer": (HI[:1], (), 2),
    "a blank line before": (["", *HI], (), 1),
    "the precision": (HI, ("--precision", "ggml"), 1),
    "a quirk": (HI, ("--quirk", "gelu=tanh"), 1),
    "the template": (HI, ("--template", "chatml"), 1),
    "the context": (HI, ("-c", "100"), 1),
    "a limit": (HI, ("--max-images", "1"), 1),
    "the model": (HI, ("-m", "text.gguf", "--mmproj", "mmproj.gguf"), 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_batch_does_not_go_on(batch, name):
    from ..support.tiny_pair import Tiny, write_pair

    changed, options, at = CHANGES[name]
    write_pair(batch.folder, Tiny())
    batch(HI)
    whole = batch.out.read_bytes()
    batch.out.write_bytes(half := b"".join(whole.splitlines(keepends=True)[:2]) + whole.splitlines()[2][:99])
    status, out, err = batch(changed, *options)
    assert (status, out) == (2, "") and err.startswith(f"error: out.jsonl: line {at}: ") and err.count("\n") == 1
    assert "expected those of the first run, or another file to write" in err
    assert batch.out.read_bytes() == half, "the file is as it was"
    assert batch(HI)[0] == 0 and batch.out.read_bytes() == whole


def test_a_picture_that_has_changed(batch):
    (batch.folder / "a.png").write_bytes(picture("count.png"))
    asked = [line("a", see("file://a.png", "Count the stars.")), HI[0]]
    batch(asked, "--allow-image-dir", ".")
    batch.out.write_bytes(batch.out.read_bytes().splitlines(keepends=True)[0])
    (batch.folder / "a.png").write_bytes(picture("digit.png"))
    status, _, err = batch(None, "--allow-image-dir", ".")
    assert status == 2 and "line 1: answers something else than line 1 of the input as it is now" in err


def test_requests_may_be_added(batch):
    batch(HI[:2])
    assert batch(HI, "--json")[1].endswith('"resumed": 2}\n')
    longer = batch.out.read_bytes()
    batch(HI, output="other.jsonl")
    assert (batch.folder / "other.jsonl").read_bytes() == longer


@pytest.mark.parametrize("there", [b"precious", b"precious\n", b'{"id": "a"}\n', b"[]\n", b"\x00" * 9, b"{" * 9999])
def test_a_file_of_something_else_is_not_touched(batch, there):
    batch.out.write_bytes(there)
    status, _, err = batch(HI)
    assert status == 2 and err.startswith("error: out.jsonl: line 1: is no answer of a batch")
    assert batch.out.read_bytes() == there


def test_one_run_at_a_time(batch):
    pytest.importorskip("fcntl", reason="this system has no locks of files")
    with AnswerFile(batch.out):
        assert batch(HI)[::2] == (2, "error: out.jsonl: file: another run is writing it\n")
    assert batch(HI)[0] == 0


def test_a_disk_that_is_full(batch):
    write(batch.folder / "in.jsonl", HI)
    with AnswerFile(batch.out) as file, open("/dev/full", "r+b", buffering=0) as full:
        file._file, kept = full, file._file
        with closing(kept), pytest.raises(OSError) as caught:
            file.write(b"{}\n")
    assert caught.value.filename == str(batch.out)


def test_answers_come_in_any_order_and_leave_in_that_of_their_lines(tmp_path):
    lines = tasks(write(tmp_path / "in.jsonl", [line(str(i), {}) for i in range(3 * WINDOW)]))
    order, chance, held, left = InOrder(lines), random.Random(3), [], []
    while (task := order.take()) or held:
        if task:
            held.append(task)
        if not task or chance.random() < 0.3:
            chosen = held.pop(chance.randrange(len(held)))
            left += [first.number for first, _ in order.put(chosen, b"")]
        assert len(held) <= WINDOW and (len(left) + WINDOW >= max((one.number for one in held), default=0))
    assert left == list(range(1, 3 * WINDOW + 1))
