"""What the comparisons share: a bound that is checked and remembered, and a table of the worst figure of each kind."""

from collections.abc import Callable, Iterator

import pytest

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    worst = config.stash.get(WORST, {})
    if worst:
        terminalreporter.section("measured: worst, bound")
        for what, (error, bound) in worst.items():
            terminalreporter.write_line(f"{what:76} {error:8.1e} {bound:8.1e}")
