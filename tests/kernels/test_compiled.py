"""The kernels' machine code is as kernels/compiled.json says, and what gets worse is found."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

triton = pytest.importorskip("triton")

from llava_ref.kernels import compiled  # noqa: E402
from llava_ref.kernels.figures import (  # noqa: E402
    TABLE,
    TARGETS,
    Figures,
    compare,
    markdown,
    read_sources,
    read_table,
    section,
    worse,
    write_table,
)
from llava_ref.kernels.machine_code import cuobjdump  # noqa: E402
from llava_ref.kernels.triton.variant import Variant  # noqa: E402

ROOT = Path(__file__).parents[2]
MADE_BY = json.loads(TABLE.read_text())["triton"]

needs_compiler = pytest.mark.skipif(cuobjdump() is None, reason="Triton's package has no cuobjdump")
FIGURES = Figures(4, 64, 0, 0, 0, 400, 2, 2, 2.0, {"quants": 128, "scales": 16}, {"IDP": 64})


def run(*words: object) -> tuple[int, list[str]]:
    """Run the command in a process without Triton's interpreter; return its exit code and lines."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "llava_ref.kernels.compiled", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    return done.returncode, (done.stdout + done.stderr).splitlines()


@needs_compiler
@pytest.mark.skipif(
    triton.__version__.split(".")[:2] != MADE_BY.split(".")[:2],
    reason=f"Triton {MADE_BY} made the table, and this is {triton.__version__}",
)
def test_no_kernel_is_worse_than_its_table_says():
    """The source of every variant is the recorded one, or the variant is compiled; of the others, a sample is."""
    code, lines = run("--check", "--changed")
    assert code == 0, "\n".join(lines)
    assert lines[-1].endswith(" compiled, 0 worse") and int(lines[-1].split()[0]) > len(read_table()[1]) / 20


def test_every_variant_is_recorded_for_every_target_and_free_of_spills():
    table, variants = read_table()[1], compiled.collect()
    assert not [key for key, figures in table.items() if figures.spills]
    assert set(table) == set(compiled.select(variants))
    assert set(read_sources()) == set(variants)
    assert {target for _, target in table} == set(TARGETS)


def test_the_readme_shows_the_table():
    shown = compiled.README.read_text("utf-8").partition(compiled.BEGIN)[2].partition(compiled.END)[0]
    assert shown == section(read_table()[1]), "python -m llava_ref.kernels.compiled writes it again"


@pytest.mark.parametrize(
    "change, line",
    [
        ({"spills": 1}, "1 spills, expected none"),
        ({"registers": 73}, "73 registers, recorded 64"),
        ({"stack": 8}, "8 bytes of stack, recorded 0"),
        ({"barriers": 3}, "3 barriers in the loop, recorded 2"),
        ({"per_weight": 2.11}, "2.11 instructions a weight, recorded 2.0"),
        ({"loads": {"quants": 64, "scales": 16}}, "quants is loaded 64 bits at a time, recorded 128"),
        ({"products": {}}, "no IDP in the loop, recorded 64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_figure_has_its_limit(change, line):
    assert list(worse(FIGURES, dataclasses.replace(FIGURES, **change))) == [line]


def test_small_changes_pass():
    near = dataclasses.replace(FIGURES, registers=72, per_weight=2.1, shared=64, loop=410)
    assert not list(worse(FIGURES, near))


def test_better_figures_are_a_note():
    better = dataclasses.replace(FIGURES, registers=40)
    bad, notes = compare({("a", 90): FIGURES}, {("a", 90): better})
    assert not bad and notes == ["a, sm_90: better than recorded"]


def test_a_table_comes_back_as_it_was_saved(tmp_path):
    table = {("b", 90): FIGURES, ("a", 80): FIGURES, ("a", 100): dataclasses.replace(FIGURES, per_weight=None)}
    write_table("3.9.0", {"b": "12", "a": "34"}, table, tmp_path / "t.json")
    assert read_table(tmp_path / "t.json") == ("3.9.0", table)
    assert read_sources(tmp_path / "t.json") == {"b": "12", "a": "34"}
    assert "| a | 4 | 64 |" in markdown(table)


def test_what_is_compiled():
    """Launches that overlap came with sm_90, and a kernel is its text, that of all it calls, and what is fixed."""
    kernel = SimpleNamespace(cache_key="text")
    variants = {f"kernel {n}": Variant(f"kernel {n}", kernel, {}, {"PDL": n % 2 == 1, "N": n}) for n in range(20)}
    assert len(compiled.select(variants)) == 10 + 20 + 20
    recorded = {name: compiled.source(variant) for name, variant in variants.items()}
    assert compiled.changed(variants, recorded) == ["kernel 0", "kernel 16"]
    recorded["kernel 5"] = recorded.pop("kernel 3")
    assert compiled.changed(variants, recorded) == ["kernel 0", "kernel 3", "kernel 5", "kernel 18"]
    kernel.cache_key = "another text"
    assert compiled.changed(variants, recorded) == list(variants)
    assert compiled.select(variants, ["kernel 1"]) == [("kernel 1", 90), ("kernel 1", 100)]


@needs_compiler
def test_the_command_finds_what_got_worse(tmp_path):
    """Write a table of two small kernels, then plant four faults in it, one after another."""
    file = tmp_path / "table.json"
    command = ["--package", "tests.kernels.toys", "--only", "copy", "--file", file]
    assert run(*command) == (0, ["6 compiled"])
    assert run(*command, "--check") == (0, ["6 compiled, 0 worse"])
    held = json.loads(file.read_text())
    figures = held["kernels"]["toys: copy"]
    assert [figures[sm]["loads"] for sm in figures] == 3 * [{"x": 128}]
    assert held["kernels"]["toys: copy, strided"]["sm_90"]["loads"] == {"x": 32}
    assert all(0.5 < figures[sm]["per_weight"] < 1.5 for sm in figures), "ptxas unrolls this loop"
    assert figures["sm_90"]["per_weight"] == round(figures["sm_90"]["loop"] / figures["sm_90"]["trips"] / 8, 3)
    figures["sm_80"]["registers"] -= 9
    figures["sm_90"]["loads"]["x"] = 256
    figures["sm_100"]["registers"] += 9
    held["kernels"]["toys: copy, gone"] = held["kernels"].pop("toys: copy, strided")
    held["triton"] = "3.0.0"
    file.write_text(json.dumps(held))
    registers = figures["sm_80"]["registers"]
    code, lines = run(*command, "--check")
    assert code == 1 and lines == [
        f"toys: copy, sm_80: {registers + 9} registers, recorded {registers}",
        "toys: copy, strided, sm_80: not in the table",
        "toys: copy, sm_90: x is loaded 128 bits at a time, recorded 256",
        "toys: copy, strided, sm_90: not in the table",
        "toys: copy, strided, sm_100: not in the table",
        "toys: copy, gone: in the table, not among the kernels",
        "note: toys: copy, sm_100: better than recorded",
        f"note: the table was made by Triton 3.0.0, this is {triton.__version__}",
        "6 compiled, 6 worse",
    ]


@needs_compiler
def test_a_kernel_that_spills_is_named_when_the_table_is_written(tmp_path):
    code, lines = run("--package", "tests.kernels.toys", "--only", "spilt", "--file", tmp_path / "table.json")
    assert code == 0 and lines[-1] == "3 compiled"
    spilt = [line.rpartition(" spills, expected none") for line in lines[:-1]]
    assert [line[0].rstrip("0123456789") for line in spilt] == [f"toys: sums, spilt, sm_{n}: " for n in TARGETS]


@needs_compiler
def test_a_kernel_that_does_not_compile_is_named(tmp_path):
    command = ["--package", "tests.kernels.toys", "--only", "wrong", "--file", tmp_path / "table.json"]
    code, lines = run(*command)
    assert code == 1 and not (tmp_path / "table.json").exists()
    assert lines[0] == "toys: wrong types, sm_80: does not compile: Both operands must be same dtype. Got fp16 and int8"
    assert lines[1].endswith("does not compile: wrong arguments: m, n: not in both the kernel and its variant")
    assert len(lines) == 7 and lines[-1] == "0 compiled"


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="a process that can compile does")
def test_the_interpreter_is_refused(capsys):
    assert compiled.main(["--check"]) == 2
    assert capsys.readouterr().err.startswith("TRITON_INTERPRET: ")


def test_a_table_that_is_not_there(tmp_path, capsys):
    assert compiled.main(["--table", "--file", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.json: table: No such file or directory\n"
