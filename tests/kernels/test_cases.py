"""The cases of `selftest` in Triton's interpreter: one of each kernel, and every kernel has some."""

from pathlib import Path

import pytest

from llava_ref.benchmark.trials import Trial, kernel_trial, run_trials

from ..support.triton_device import DEVICE

pytest.importorskip("triton")
from llava_ref import kernels
from llava_ref.kernels.cases import cases

FOLDER = Path(kernels.__path__[0]) / "triton"
CASES = list(cases(DEVICE))
FIRST = {case.kernel: case for case in reversed(CASES)}


def launchers() -> set[str]:
    """Every file of kernels/triton that lists variants of its kernels."""
    return {path.stem for path in FOLDER.glob("*.py") if "\ndef variants(" in path.read_text()}


def test_every_kernel_has_cases():
    named = {name.split(".")[0] for case in CASES for name in case.kernel.split(", ")}
    assert launchers() - named == set() and len(launchers()) >= 8
    assert len({(case.kernel, case.sort) for case in CASES}) == len(CASES) > 150


@pytest.mark.parametrize("kernel", FIRST)
def test_a_kernel_is_within_its_bound(kernel):
    (row,) = run_trials([kernel_trial(FIRST[kernel])])
    assert row.failed == {} and row.operation == f"kernel {kernel}"
    assert row.error <= row.bound and (row.bound == 0 or row.error > 0)


def test_a_kernel_that_raises_or_is_wrong_is_named():
    def wrong():
        got, want = FIRST["activations.quantise"].run()
        return (got * 1.001).numpy(), want.numpy()

    def raises():
        raise RuntimeError("illegal address\nat launch")

    rows = run_trials([Trial("kernel a", "1 x 96", 1e-4, wrong), Trial("kernel b", "x", 1.0, raises)])
    assert rows[0].failed == {"1 x 96": "error 1.0e-03"} and rows[1].failed == {"x": "RuntimeError: illegal address"}
