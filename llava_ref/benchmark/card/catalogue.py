"""All questions by name, in the order in which they are asked: is it right, then how fast is it."""

from collections.abc import Iterator
from functools import partial

from ...kernels.cases import FAMILIES
from ...kernels.cases.case import KernelCase
from ...ops import get_ops
from ..trials import Tested, Trial, kernel_trial, operations, run_trials
from . import peers, questions, whole
from .asking import CardQuestion
from .questions import Card, Question
from .timing import Row

CHECK = "selftest"


def _kernels(family: int, card: Card) -> Iterator[Row]:
    """Test the kernels of one family."""
    found: Iterator[KernelCase] = FAMILIES[family](card.device)
    yield from _rows(run_trials(map(kernel_trial, found)))


def _steppers(card: Card) -> Iterator[Row]:
    """Test a step of small decoders, and the operations that it is made of; attention in its own question."""
    trials: Iterator[Trial] = operations(get_ops("torch", card.device, None, 0, "fast"), "fast", "cuda")
    yield from _rows(run_trials(trial for trial in trials if "attention" not in trial.operation))


def _rows(found: list[Tested]) -> Iterator[Row]:
    for row in found:
        note = f"{row.n_cases} cases, error {row.error:.1e} of {row.bound:.1e}"
        failed = "; ".join(f"{sort}: {problem}" for sort, problem in row.failed.items())
        yield Row(CHECK, row.operation, note=note, problem=failed or None)


_CHECKS: dict[str, Question] = {
    f"{CHECK} {family.__name__}": partial(_kernels, i) for i, family in enumerate(FAMILIES)
} | {f"{CHECK} operations": _steppers}
QUESTIONS: dict[str, Question] = _CHECKS | {
    "copy": questions.copy,
    "matvec": questions.matvec,
    "dependent launch": whole.dependent_launch,
    "products": questions.prefill,
    "attention": questions.attention,
    "step": whole.steps,
    "prefill": whole.prompts,
    "picture": whole.picture,
    "rows of x": questions.rows_of_x,
    "small kernels": questions.small,
    **peers.QUESTIONS,
}
LIMITS = {"copy": 30.0, "small kernels": 30.0, "picture": 45.0}
"""Seconds of a question's process; most of them go into compiling kernels."""


def asked() -> list[CardQuestion]:
    """Return all questions with their limits."""
    checks = [CardQuestion(name, 180.0, together=True) for name in _CHECKS]
    return [*checks, *(CardQuestion(name, LIMITS.get(name, 120.0)) for name in QUESTIONS if name not in _CHECKS)]
