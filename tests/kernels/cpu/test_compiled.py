"""Kernels are compiled once, kept whole or not at all, and compiled again where what is kept is damaged."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from llava_ref.kernels.cpu import compiled
from llava_ref.kernels.cpu.compiled import Kernel, folder, machine_code
from llava_ref.kernels.cpu.launch import Launch, arguments, run
from llava_ref.kernels.cpu.simd import i64, load, store
from llava_ref.kernels.cpu.traced import loop

COUNTED = """
import sys
from llava_ref.kernels.cpu import compiled
made, names = compiled.machine_code, []
compiled.machine_code = lambda name, body: names.append(name) or made(name, body)
from llava_ref.kernels.cpu import norms
import numpy as np
from llava_ref.kernels.cpu.launch import run
x = np.ones((1, 32), np.float32)
run(norms.rms_norm(*[x.ctypes.data] * 3, 1, 32, 1e-6), threads=1)
assert abs(x - 1).max() < 1e-5
print(sorted(names))
"""


def doubled(args, first, end):
    """Double numbers at an address."""
    x = load(i64, args)
    for i in loop(first, end):
        store(load(i64, x + 8 * i) * 2, x + 8 * i)


def apply(kernel: Kernel) -> list[int]:
    x = np.arange(4)
    run(Launch(kernel, arguments(x.ctypes.data), 4, 1), threads=1)
    return x.tolist()


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty folder, and what is compiled while it is used."""
    monkeypatch.setattr(compiled, "folder", lambda: tmp_path)
    names: list[str] = []

    def counted(name, body):
        names.append(name)
        return machine_code(name, body)

    monkeypatch.setattr(compiled, "machine_code", counted)
    monkeypatch.setattr(compiled, "KERNELS", set())
    return tmp_path, names


def in_a_process(home: Path) -> str:
    environment = os.environ | {"XDG_CACHE_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", COUNTED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    assert "norms.normed" in in_a_process(tmp_path)
    assert in_a_process(tmp_path) == "[]"


def test_a_kernel_is_compiled_when_it_is_first_run(fresh):
    _, names = fresh
    kernel = Kernel("test.lazy", doubled)
    assert names == []
    assert apply(kernel) == apply(kernel) == [0, 2, 4, 6]
    assert names.count("test.lazy") == 1


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:40] + b"!" + data[41:], lambda data: b""]
)
def test_a_damaged_file_is_compiled_anew(fresh, damage):
    home, names = fresh
    Kernel("test.damaged", doubled).address  # noqa: B018
    file = home / "test.damaged.o"
    file.write_bytes(damage(whole := file.read_bytes()))
    compiled.KERNELS.clear()
    assert compiled._kept("test.damaged") is None
    Kernel("test.damaged", doubled)._code()
    assert names == ["test.damaged"] * 2 and file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiled, "folder", lambda: tmp_path / "file" / "folder")
    assert apply(Kernel("test.nowhere", doubled)) == [0, 2, 4, 6]


def test_two_kernels_of_one_name_are_refused(fresh):
    kernel = Kernel("test.same", doubled)
    with pytest.raises(ValueError, match=r"test\.same"):
        Kernel(kernel.name, doubled)


def test_the_folder_is_another_one_for_another_level():
    code = "from llava_ref.kernels.cpu.compiled import folder; print(folder())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"LLAVA_REF_SIMD": level}, capture_output=True, text=True
        ).stdout
        for level in ("portable", "avx512")
    }
    assert len(found) == 2 and all(str(folder().parent) in path for path in found)


def test_a_level_that_is_none_is_refused_in_one_line():
    code = "import llava_ref.kernels.cpu.processor"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"LLAVA_REF_SIMD": "sse9"}, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.endswith("LLAVA_REF_SIMD: 'sse9', expected one of amx, avx512, avx2, portable")
