"""The cases of `selftest` on a processor, at every level, also those that it does not have."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llvmlite")

from llava_ref.benchmark.trials import kernel_trial, run_trials
from llava_ref.kernels import cpu
from llava_ref.kernels.cpu import cases
from llava_ref.kernels.cpu.processor import LEVELS

FOLDER = Path(cpu.__file__).parent
ELSEWHERE = {"launch", "cases", "gemm", "panels", "amx_gemm", "slots"}
"""Modules whose launches are parts of what another module does: `product.ManyRows` has cases for them."""
RUN = """
import json
from llava_ref.benchmark.trials import kernel_trial, run_trials
from llava_ref.kernels.cpu.cases import cases
from llava_ref.kernels.cpu.processor import LEVEL
rows = run_trials(map(kernel_trial, cases()))
failed = {row.operation: row.failed for row in rows if row.failed}
print(json.dumps({"level": LEVEL, "cases": sum(row.n_cases for row in rows), "failed": failed}))
"""


def launches(path: Path) -> list[str]:
    """Return the public functions of a module that make a launch."""
    found = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
    made = [node.name for node in found if node.returns and ast.unparse(node.returns) == "Launch"]
    return [f"{path.stem}.{name}" for name in made if not name.startswith("_")]


def test_every_launch_has_a_case():
    names = {name for path in FOLDER.glob("*.py") if path.stem not in ELSEWHERE for name in launches(path)}
    assert len(names) >= 10 and names <= {case.kernel for case in cases.cases()}


def test_every_type_has_a_case_of_every_kind():
    sorts = {(case.kernel, case.sort.split()[0]) for case in cases.cases()}
    kernels = "matvec.matvec", "rows.rows", "rows.widened", "product.ManyRows"
    assert all((kernel, kind) in sorts for kernel in kernels for kind in cases.SUPPORTED)


@pytest.mark.parametrize("name", LEVELS)
def test_all_are_within_their_bounds(name):
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=os.environ | {"LLAVA_REF_SIMD": name}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["level"] == name and found["cases"] > 100 and not found["failed"]


def test_a_kernel_that_is_wrong_is_named(monkeypatch):
    right = cases.gate
    monkeypatch.setattr(cases, "gate", lambda gate, up, out, n, kind: right(gate, up, out, n, "silu"))
    (row,) = run_trials(kernel_trial(case) for case in cases.by_row() if case.kernel == "gates.gate")
    assert {"gelu_erf", "gelu_tanh, gated"} <= row.failed.keys() and not {"silu", "silu, gated"} & row.failed.keys()


def test_what_is_left_unwritten_is_an_error(monkeypatch):
    """Results lie in memory that held NaN."""
    monkeypatch.setattr(cases, "run", lambda *launches, threads: None)
    rows = run_trials(map(kernel_trial, cases.by_row()))
    assert rows and all(len(row.failed) == row.n_cases for row in rows)
