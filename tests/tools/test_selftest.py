"""`selftest`: every operation has cases, and one that computes wrongly is named."""

import json
from itertools import product

import numpy as np
import pytest

from llava_ref.benchmark.trials import error, operations, run_trials
from llava_ref.ops.cases import cases
from llava_ref.ops.numpy_ops import NumpyOps
from llava_ref.ops.protocol import Ops
from llava_ref.ops.torch_ops import TorchOps

BACKENDS = {"torch": TorchOps, "numpy": NumpyOps}
THROUGH = {"matrix": "product", "plan": "attention", "numpy": "array", "running": "product"}
"""Methods whose cases stand under the name of another."""


def names(method):
    return [name for case in ALL for name in case.operation.split(", ") if name == method]


def tensor(kind, rows, columns):
    from llava_ref.conformance.pairs.random_blocks import random_tensor
    from llava_ref.gguf.file import TensorView

    data = random_tensor(kind, rows, columns, 1)
    return TensorView(kind, kind, (rows, columns), memoryview(bytearray(data.tobytes())))


ALL = list(cases(tensor, ["F32", "Q4_K"]))


def test_every_operation_has_a_case():
    methods = {name for name, value in vars(Ops).items() if callable(value) and not name.startswith("_")}
    methods -= {"kernels"}  # says a line
    assert len(methods) > 15
    assert not [method for method in methods if not names(THROUGH.get(method, method))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backends_pass(cli, backend):
    status, out, err = cli("selftest", "--backend", backend, "--precision", "exact", "--json")
    found = json.loads(out)
    rows = {row["operation"]: row for row in found["operations"]}
    assert status == 0 and found["ok"] and (found["backend"], found["device"]) == (backend, "cpu")
    assert all(row["ok"] and row["failed"] == {} and row["error"] <= row["bound"] for row in rows.values())
    assert rows["product"]["n_cases"] == 4 * 26 and 1e-8 < rows["product"]["error"] < rows["product"]["bound"] < 1e-5
    assert rows["rows"]["bound"] == rows["rows"]["error"] == 0
    assert sum(row["n_cases"] for row in rows.values()) > 250 and "cases in" in err


WRONG = {
    "rms_norm": lambda y: y * (1 + 1e-5),
    "attention": lambda y: y * (1 - 1e-4),
    "layer_norm": lambda y: y * np.nan,
    "rope": lambda y: y[:-1],
    "concat": lambda y: y + 1e-6,
    "all_finite": lambda y: True,
    "activation": lambda y: 1 / 0,
}


@pytest.mark.parametrize("backend, name", list(product(BACKENDS, WRONG)))
def test_what_is_wrong_is_named(cli, monkeypatch, backend, name):
    right, static = getattr(BACKENDS[backend], name), isinstance(vars(BACKENDS[backend])[name], staticmethod)
    monkeypatch.setattr(
        BACKENDS[backend], name, lambda self, *args: WRONG[name](right(*args) if static else right(self, *args))
    )
    monkeypatch.setattr("llava_ref.conformance.pairs.random_blocks.KINDS", ("F32", "F16"))
    monkeypatch.setattr("llava_ref.ops.cases.HEAD_SIZES", (64,))
    status, out, err = cli("selftest", "--backend", backend, "--precision", "exact")
    last = err.splitlines()[-1]
    assert status == 1 and last.startswith("failed: ") and name in last
    assert "rows" not in last and f"\n{name} " in out and "FAILED" in out


def test_a_matrix_that_is_wrong_is_named_with_its_type(cli, monkeypatch):
    from llava_ref.ops import torch_quants

    right = torch_quants.BLOCKS["Q4_K"]
    monkeypatch.setitem(torch_quants.BLOCKS, "Q4_K", lambda b: right(b) * 1.01)
    status, _, err = cli("selftest", "--backend", "numpy", "--json")
    assert status == 1 and "product Q4_K, rows Q4_K, vector Q4_K" in err and "Q5_K" not in err


def test_the_operations_of_fast_are_within_their_bounds(monkeypatch):
    """In Triton's interpreter; products and steps, which take long there, have tests of their own."""
    pytest.importorskip("triton")
    from llava_ref.ops.cuda.ops import CudaOps

    monkeypatch.setattr("llava_ref.ops.cases.HEAD_SIZES", (64,))
    monkeypatch.setattr("llava_ref.conformance.pairs.random_blocks.KINDS", ("F32", "F16", "Q4_K"))
    left_out = ("fast product", "fast stepper", "fast step_together")
    trials = [
        trial for trial in operations(CudaOps("cpu", None, 1 << 30), "fast", "cuda") if trial.operation not in left_out
    ]
    rows = {row.operation.removeprefix("fast "): row for row in run_trials(trials)}
    assert len(rows) == 19 and not [row for row in rows.values() if row.failed]
    assert rows["rows"].error == 0 and rows["attention"].error > 1e-5 > rows["rms_norm"].error
    bounds = {trial.sort: trial.bound for trial in trials if trial.operation == "fast linear"}
    assert bounds["1 rows"] < bounds["11 rows"], "few rows are of two 8-bit terms, more of float16"


class TestFastOnAProcessor:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch):
        """A few cases: all of them are run by tests/kernels/cpu and by whoever has the processor."""
        pytest.importorskip("llvmlite")
        from llava_ref.kernels.cpu import cases as kernels

        monkeypatch.setattr("llava_ref.conformance.pairs.random_blocks.KINDS", ("F32", "F16", "Q4_0"))
        monkeypatch.setattr("llava_ref.ops.cases.HEAD_SIZES", (64,))
        monkeypatch.setattr(kernels, "FAMILIES", (kernels.activations,))

    def operations(self, cli, *arguments):
        _, out, err = cli("selftest", "--json", *arguments)
        return {row["operation"] for row in json.loads(out)["operations"]}, err

    def test_both_precisions_and_the_kernels_are_tested(self, cli):
        found, err = self.operations(cli)
        assert {"product", "fast product", "fast rope", "kernel activations.quantise"} <= found
        assert "llvmlite" not in err

    def test_one_precision_may_be_asked_for(self, cli):
        fast, _ = self.operations(cli, "--precision", "fast")
        exact, _ = self.operations(cli, "--precision", "exact")
        assert "fast rope" in fast and "rope" not in fast and "kernel activations.quantise" in fast
        assert "rope" in exact and not [name for name in exact if name.startswith(("fast ", "kernel "))]

    def test_without_llvmlite_one_line_says_what_is_missing(self, cli, monkeypatch):
        monkeypatch.setattr("llava_ref.tools.selftest.find_spec", lambda name: None)
        found, err = self.operations(cli)
        assert "rope" in found and "fast rope" not in found
        assert "[no precision fast: the fast extra is missing: pip install -e " in err

    def test_a_wrong_kernel_is_named(self, cli, monkeypatch):
        from llava_ref.kernels.cpu import cases as kernels

        right = kernels.quantise
        monkeypatch.setattr(kernels, "quantise", lambda x, stride, out, rows: right(x + 4, stride, out, rows))
        status, _, err = cli("selftest", "--precision", "fast")
        assert status == 1 and "kernel activations.quantise 8 x 4096" in err


def test_errors_are_infinite_where_a_number_is():
    assert error(np.array([1.0, 1.1]), np.array([1.0, 1.0])) == pytest.approx(0.1 / 2**0.5)
    assert error(np.array([np.nan]), np.array([1.0])) == np.inf
    assert error(np.ones(2), np.ones(3)) == np.inf
    assert error(np.zeros(2), np.zeros(2)) == 0 and error(np.ones(2), np.zeros(2)) == np.inf


def test_no_device_is_one_line(cli):
    status, out, err = cli("selftest", "--backend", "numpy", "--device", "cuda")
    assert (status, out) == (2, "") and err.startswith("error: device: 'cuda': ")
