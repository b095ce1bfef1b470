"""The rate of memory, and the most that a process had."""

import subprocess
import sys

import numpy as np
import pytest

from llava_ref.benchmark import machine
from llava_ref.benchmark.bandwidth import SIZE, TIMES, buffer_size, cache_bytes, read_rate
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

    monkeypatch.setattr("llava_ref.benchmark.bandwidth.np.maximum", Counting)
    monkeypatch.setattr("llava_ref.benchmark.bandwidth.PASSES", 1)
    read_rate(3, 8_000_000)()
    assert len(read) == 3 and sum(read) == 8_000_000


@pytest.fixture
def cpus(tmp_path):
    """Two packages of two processors each: a first level of their own, a third shared in a package."""
    for cpu in range(4):
        package = cpu // 2
        caches = {0: ("1", f"{cpu}", "48K"), 1: ("3", f"{2 * package}-{2 * package + 1}", "307200K")}
        for index, values in caches.items():
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, value in zip(("level", "shared_cpu_list", "size"), values, strict=True):
                (folder / name).write_text(value + "\n")
    return tmp_path


def test_the_last_cache_of_every_package_counts_once(cpus):
    assert cache_bytes(cpus) == 2 * 307200 * 1024
    (cpus / "cpu0" / "cache" / "index1" / "size").write_text("1M")
    (cpus / "cpu1" / "cache" / "index1" / "size").unlink()
    assert cache_bytes(cpus) == 307200 * 1024 + (1 << 20), "a file that is not there is left out"
    assert cache_bytes(cpus / "none") == 0


def test_a_buffer_is_larger_than_the_caches_and_leaves_memory_free(cpus):
    assert buffer_size(cpus, 1 << 40) == TIMES * 2 * 307200 * 1024
    assert buffer_size(cpus / "none", 1 << 40) == SIZE
    assert buffer_size(cpus, 1 << 30) == 1 << 28


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
