"""The rate of memory, and the most that a process had."""

import subprocess
import sys

import numpy as np
import pytest

from llava_ref.benchmark import machine
from llava_ref.benchmark.bandwidth import read_rate
from llava_ref.benchmark.machine import Host, peak_rss_mb


def test_a_rate_is_bytes_over_seconds():
    ticks = iter(range(0, 1000, 2))
    assert read_rate(3, 6_000_000, lambda: next(ticks))() == pytest.approx(0.003)


def test_every_byte_is_read(monkeypatch):
    read = []

    class Counting:
        @staticmethod
        def reduce(part):
            read.append(part.nbytes)

    monkeypatch.setattr("llava_ref.benchmark.bandwidth.np.bitwise_or", Counting)
    monkeypatch.setattr("llava_ref.benchmark.bandwidth.PASSES", 1)
    read_rate(3, 8_000_000)()
    assert len(read) == 3 and sum(read) == 8_000_000


def test_the_host_s_rate_comes_from_a_process_of_its_own():
    host = Host(1)
    try:
        before = peak_rss_mb()
        rates = [host.read_gb_s() for _ in range(2)]
        assert all(0.3 < rate < 2000 for rate in rates)
        assert peak_rss_mb() - before < 100, "its half GB is in no other's peak"
        assert host.device_memory_mb() is None
    finally:
        host.close()
    assert host._reader.returncode == 0


def test_the_peak_is_the_process_s_own():
    code = "import numpy as np; from llava_ref.benchmark.machine import peak_rss_mb; np.ones(1 << {n});"
    code += "print(peak_rss_mb())"
    small, large = (
        float(subprocess.run([sys.executable, "-c", code.replace("{n}", n)], capture_output=True, check=True).stdout)
        for n in ("10", "24")
    )
    assert 100 < large - small < 200, "2^24 float64 are 134 MB"


def test_the_peak_without_proc(monkeypatch, tmp_path):
    pytest.importorskip("resource")
    monkeypatch.setattr(machine, "STATUS", tmp_path / "none")
    assert peak_rss_mb() > 0
    assert np.isfinite(peak_rss_mb())
