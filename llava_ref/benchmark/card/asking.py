"""Put every question to a card, each in a process of its own: a crash or a kernel that hangs ends one question only."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

from .timing import Row

TOTAL_S = 460.0
"""Seconds for all questions together."""
COMMAND = (sys.executable, "-m", "llava_ref.kernels.bench", "--only")
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class CardQuestion:
    """A question by its name, and the seconds that its process may take."""

    name: str
    limit_s: float
    together: bool = False
    """Whether it measures no time, so that it may run beside others of its sort."""


def ask_all(
    asked: Sequence[CardQuestion], command: Sequence[str] = COMMAND, clock: Clock = time.monotonic
) -> Iterator[Row]:
    """Yield the rows of every question, in order: first those that may run together, then one after the other."""
    end = clock() + TOTAL_S
    together = [one for one in asked if one.together]
    with ThreadPoolExecutor(len(together) or 1) as pool:
        for rows in pool.map(partial(ask, end=end, command=command, clock=clock), together):
            yield from rows
    for one in asked:
        if not one.together:
            yield from ask(one, end, command, clock)


def ask(one: CardQuestion, end: float, command: Sequence[str], clock: Clock = time.monotonic) -> list[Row]:
    """Return the rows of one question: those that came, and one more where the process failed or was stopped."""
    left = min(one.limit_s, end - clock())
    if left <= 0:
        return [Row(one.name, "", problem="not asked: the time was over")]
    process = subprocess.Popen([*command, one.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=left)
        problem = None if process.returncode == 0 else _ending(process.returncode, err)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        problem = f"stopped after {left:.0f} s"
    rows = list(parsed(out))
    return rows if problem is None else [*rows, Row(one.name, "the rest" if rows else "", problem=problem)]


def _ending(code: int, err: str) -> str:
    """Say how a process ended."""
    last = (err.strip().splitlines() or [""])[-1][:300]
    if code >= 0:
        return last or f"exit code {code}"
    name = f"signal {-code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
    return f"ended by {name}: {last}" if last else f"ended by {name}"


def answer(rows: Iterator[Row]) -> None:
    """Print rows as they come, a line of JSON each: what `parsed` reads."""
    for row in rows:
        print(json.dumps(asdict(row)), flush=True)


def parsed(out: str) -> Iterator[Row]:
    """Yield the rows in a question's output. Other lines are what a library had to say."""
    for line in out.splitlines():
        with suppress(ValueError, TypeError):
            yield Row(**json.loads(line))
