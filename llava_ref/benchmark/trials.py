"""Run every operation of a backend, and every kernel, beside its definition in float64."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..gguf.file import TensorView
from ..ops.protocol import Ops


@dataclass(frozen=True, slots=True)
class Trial:
    """One computation and its definition, not yet run."""

    operation: str
    sort: str
    """Which of the operation's cases this is: a weight type, a shape."""
    bound: float
    """Largest relative RMS error."""
    run: Callable[[], tuple[np.ndarray, np.ndarray]]
    """Return what was computed, and what the definition gives."""


@dataclass(slots=True)
class Tested:
    """All trials of one operation."""

    operation: str
    bound: float
    n_cases: int = 0
    error: float = 0.0
    """Largest relative RMS error; infinite where a result is not finite."""
    worst: str = ""
    """The case with that error."""
    failed: dict[str, str] = field(default_factory=dict)
    """Cases that exceed the bound or raised an error, with what is wrong."""

    def add(self, trial: Trial) -> None:
        """Run a trial. Whatever it raises is a failure of its case, and the others go on."""
        self.n_cases += 1
        try:
            off = error(*trial.run())
        except Exception as problem:  # whatever a kernel may do wrong is what this is for
            self.failed.setdefault(trial.sort, f"{type(problem).__name__}: {problem}".partition("\n")[0])
            return
        if off > self.error:
            self.error, self.worst = off, trial.sort
        if off > trial.bound:
            self.failed.setdefault(trial.sort, f"error {off:.1e}")


def operations(ops: Ops, precision: str, device: str) -> Iterator[Trial]:
    """Yield a trial for every case of `ops.cases`, with the bounds of a device."""
    from ..conformance.pairs.random_blocks import KINDS, random_tensor
    from ..ops.cases import OperationCase, cases
    from ..ops.definition import Definition

    defined, prefix = Definition(), "" if precision == "exact" else f"{precision} "

    def tensor(kind: str, rows: int, columns: int) -> TensorView:
        data = random_tensor(kind, rows, columns, 1)
        return TensorView(kind, kind, (rows, columns), memoryview(bytearray(data.tobytes())))

    def both(case: OperationCase) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"), ops.running(*case.work):
            got = ops.numpy(case.run(ops))
        return got, defined.numpy(case.run(defined))

    for case in cases(tensor, KINDS):
        yield Trial(prefix + case.operation, case.sort, case.bound(precision, device), partial(both, case))


def kernels(device: str) -> Iterator[Trial]:
    """Yield a trial for every case of `kernels.cases`, or on a CPU of `kernels.cpu.cases`."""
    if device == "cpu":
        from ..kernels.cpu import cases as on_cpu

        yield from map(kernel_trial, on_cpu.cases())
    else:
        from ..kernels.cases import cases

        yield from map(kernel_trial, cases(device))


def kernel_trial(case: Any) -> Trial:
    """Return a `kernels.cases.KernelCase` as a trial."""

    def both() -> tuple[np.ndarray, np.ndarray]:
        got, want = case.run()
        return got.double().cpu().numpy(), want.cpu().numpy()

    return Trial(f"kernel {case.kernel}", case.sort, case.bound, both)


def run_trials(trials: Iterable[Trial]) -> list[Tested]:
    """Run trials, and return a row for each operation. The bound of a row is the largest of its cases'."""
    rows: dict[str, Tested] = {}
    for trial in trials:
        row = rows.setdefault(trial.operation, Tested(trial.operation, trial.bound))
        row.bound = max(row.bound, trial.bound)
        row.add(trial)
    return list(rows.values())


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Return ||got - want|| / ||want||; infinite where a number is not finite or the shapes differ."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return math.inf
    size = float(np.linalg.norm(np.asarray(want, np.float64)))
    off = float(np.linalg.norm(np.asarray(got, np.float64) - want))
    return off / size if size else math.inf * off if off else 0.0
