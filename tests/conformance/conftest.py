"""What the comparisons share: a family's cases and the references' runs of them; a bound that is checked and
remembered, and a table of the worst figure of each kind."""

from collections.abc import Callable, Iterator
from functools import cache

import pytest

from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case, Run

from .reference_cases import EVERYTHING, N_GREEDY

Within = Callable[[str, float, float], None]
WORST = pytest.StashKey[dict[str, tuple[float, float]]]()


@pytest.fixture(scope="session")
def within(pytestconfig: pytest.Config) -> Iterator[Within]:
    """`within(what, error, bound)` fails unless `error` < `bound`; the worst of each `what` is printed at the end."""
    worst = pytestconfig.stash.setdefault(WORST, {})

    def check(what: str, error: float, bound: float) -> None:
        worst[what] = (max(error, worst.get(what, (0.0, bound))[0]), bound)
        assert error < bound, f"{what}: {error:.3g}, expected less than {bound:.3g}"

    yield check


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """`case(name)`: the files of a case of the module's FAMILY, written once."""
    family = request.module.FAMILY
    return cache(lambda name: family.write(tmp_path_factory.mktemp("pair"), family.cases[name]))


@pytest.fixture(scope="module")
def ran(case: Callable[[str], Case]) -> Callable[[str, str], Run]:
    """`ran(name, profile)`: every stage and the greedy tokens of the profile's reference, run once."""
    engines = {"hf": Transformers(stages=EVERYTHING), "llama.cpp": LlamaCpp(stages=EVERYTHING)}
    return cache(lambda name, profile: engines[profile].run(case(name), n_greedy=N_GREEDY))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    worst = config.stash.get(WORST, {})
    if worst:
        terminalreporter.section("measured: worst, bound")
        for what, (error, bound) in worst.items():
            terminalreporter.write_line(f"{what:76} {error:8.1e} {bound:8.1e}")
