"""The benchmark of a processor's kernels: what it counts, its table and its lines of JSON. No rate is tested."""

import json

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from llava_ref.kernels.cpu import bench, bench_jobs
from llava_ref.kernels.cpu.bench import Rate, line, main, reading
from llava_ref.kernels.cpu.bench_jobs import Buffer, Job, jobs
from llava_ref.kernels.cpu.matvec import SUPPORTED


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "LEAST", 1 << 20)
    monkeypatch.setattr(bench, "buffer_size", lambda: 1 << 20)
    monkeypatch.setattr(bench, "PASSES", 2)
    monkeypatch.setattr(bench_jobs, "MATRIX", 1 << 18)
    monkeypatch.setattr(bench_jobs, "PROMPT", 16)
    monkeypatch.setattr(bench_jobs, "KEYS", 16)


def test_a_row_says_what_a_kernel_and_what_reading_did(capsys, monkeypatch):
    monkeypatch.setattr(bench, "processors", lambda: 2)
    assert main(["--only", "matvec Q8_0 x 1"]) == 0
    out, err = capsys.readouterr()
    head, one, two = out.splitlines()
    assert head.split() == ["kernel", "threads", "cores", "GB/s", "read", "share", "G/s"] and "instructions: " in err
    assert one.split()[:5] == ["matvec", "Q8_0", "x", "1", "1"] and two.split()[4] == "2" and len(one.split()) == 11
    gb_s, read, share, g_s = map(float, one.split()[6:10])
    assert gb_s > 0 and read > 0 and g_s > 0 and share == pytest.approx(gb_s / read, abs=0.06 * (1 + gb_s / read))


def test_lines_of_json(capsys, monkeypatch):
    monkeypatch.setattr(bench, "processors", lambda: 1)
    assert main(["--only", "rms", "--json"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["kernel"] == "rms_norm" and row["threads"] == 1 and row["unit"] == "G numbers/s"
    assert row["gb_s"] == pytest.approx(8 * row["g_s"]), "float32, read once and written once"


def test_a_name_that_no_kernel_has_is_one_line(capsys):
    assert main(["--only", "Q9"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: --only: 'Q9': no kernel has this in its name"


def test_every_type_is_multiplied_and_widened():
    found = jobs().keys()
    assert {"attention 32 over 8 heads", "prompt attention 16", "rms_norm"} <= found
    for kind in SUPPORTED:
        assert {f"matvec {kind} x 1", f"matvec {kind} x 8", f"product {kind} x 16", f"rows as bfloat16 {kind}"} <= found


@pytest.mark.parametrize("name", ["matvec F16 x 1", "rows as bfloat16 F16", "attention 32 over 8 heads"])
def test_bytes_are_those_of_the_buffer_that_are_read(name):
    buffer = Buffer(1 << 20)
    job = jobs()[name](buffer)
    assert buffer.size // 2 < job.n_bytes <= buffer.size
    if "attention" not in name:
        assert job.n_bytes == 2 * job.amount


@pytest.mark.parametrize("name", ["product Q8_0 x 16", "prompt attention 16", "quantise"])
def test_jobs_run(name):
    job = jobs()[name](Buffer(1 << 20))
    job.run(2)
    assert job.amount > 0


def test_reading_reads_every_part():
    buffer = Buffer(1 << 16)
    (program, out), words = reading(buffer), buffer._bytes.view(np.uint64)
    for at in (0, 77, len(words) // 2, len(words) - 1):
        program.run(1)
        before = out.copy()
        words[at] ^= 1 << 40
        program.run(1)
        assert (out != before).sum() == 1


def test_the_least_of_some_passes_counts(monkeypatch):
    times = iter([(9.0, 1.0), (4.0, 0.5), (2.0, 1.0), (8.0, 1.5)])
    monkeypatch.setattr(bench, "timed", lambda job, threads: next(times))
    rate = bench.measured("a", Job(lambda threads: None, 12 * 10**9, 24 * 10**9, "Gw/s"), None, 4 * 10**9, 2)
    assert rate == Rate("a", 2, 0.5, 3.0, 2.0, 6.0, "Gw/s")
    assert line(rate).split() == ["a", "2", "0.50", "3.0", "2.0", "1.50", "6.0", "Gw/s"]
