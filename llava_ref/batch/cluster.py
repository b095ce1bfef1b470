"""Answer the lines of a batch on the machines of a Ray cluster: a worker for each machine, or for each card of one.

The file of answers, its order and resuming are those of a run on one machine. A worker that is lost costs the time of
the lines that it had: they are given to others.
"""

import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import ParameterError
from .answering import Answerer, failed
from .lines import Task
from .remote import Facts, ModelActor

CONNECT = 5.0
"""Seconds for the first answer of a cluster."""
LOOK = 1.0
"""Seconds between two looks for machines that have come."""
PATIENCE = 60.0
"""Seconds without a machine after which a run ends."""
LOSSES = 3
"""Workers that may be lost with the same line: it may be what ends them."""


@dataclass(slots=True, eq=False)
class ClusterWorker:
    """A `ModelActor`, as the driver sees it."""

    machine: str
    """Ray's id of it."""
    name: str
    """Its address."""
    actor: Any
    loading: Any
    """What `load` will return; None once the model is loaded."""
    room: int = 0
    """Lines that it may have at once."""
    given: dict[Any, Task] = field(default_factory=dict)
    """The lines that it has, by what will be their answers."""


class Cluster:
    """The workers of a run.

    `address`: as `ray.init` takes it. `facts` and `start` are called on each machine: one where `facts()` differ from
    those here is left out, and `tell` gets a sentence. `cards`: a worker for each card instead of each machine."""

    def __init__(
        self,
        address: str,
        facts: Callable[[], Facts],
        start: Callable[[], Answerer],
        tell: Callable[[str], None],
        *,
        cards: bool,
    ) -> None:
        self._address, self._tell, self._cards = address, tell, cards
        self._load = (facts, facts(), start)
        self._workers: list[ClusterWorker] = []
        self._left_out: dict[str, str] = {}
        """Machines that cannot take part, and why."""
        self._back: deque[Task] = deque()
        self._losses: dict[int, int] = {}
        self._looked = self._seen = time.monotonic()

    def each(self, take: Callable[[], Task | None]) -> Iterator[tuple[Task, bytes]]:
        """Yield tasks with the lines that answer them, as `Answerer.each` does. Raises ParameterError."""
        import ray

        with redirect_stdout(sys.stderr):  # where Ray reports the end of a process
            self._connect()
            try:
                yield from self._answers(take)
            finally:
                ray.shutdown()

    def _answers(self, take: Callable[[], Task | None]) -> Iterator[tuple[Task, bytes]]:
        while True:
            self._look()
            for worker in self._workers:
                yield from self._give(worker, take)
            if not any(worker.given for worker in self._workers):
                task = yield from self._next(take)
                if task is None:
                    return
                self._back.appendleft(task)
            yield from self._collect()

    def _connect(self) -> None:
        """Raise ParameterError if there is no cluster at the address."""
        import ray

        host, colon, port = self._address.rpartition(":")
        if self._address != "auto" and not (host and "/" not in host and port.isdecimal() and int(port) < 65536):
            raise ParameterError("--ray", self._address, "expected auto or HOST:PORT, on a machine of the cluster")
        try:
            if host:  # Ray itself would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
            ray.init(self._address, logging_level="CRITICAL", log_to_driver=False)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            problem = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise ParameterError("--ray", self._address, f"no cluster answers: {problem}") from None
        self._look(at_once=True)

    def _look(self, *, at_once: bool = False) -> None:
        """Start a worker wherever one is missing. Raises ParameterError if there is nowhere to run."""
        import ray

        now = time.monotonic()
        if not at_once and now - self._looked < LOOK:
            return
        self._looked = now
        wanted = {node["NodeID"]: self._wanted(node) for node in ray.nodes() if node["Alive"]}
        for node in ray.nodes():
            machine = node["NodeID"]
            missing = wanted.get(machine, 0) - sum(worker.machine == machine for worker in self._workers)
            for _ in range(0 if machine in self._left_out else missing):
                self._workers.append(self._started(node))
        if self._workers:
            self._seen = now
        elif self._left_out:
            machine, problem = next(iter(self._left_out.items()))
            raise ParameterError("--ray", self._address, f"no machine can take part; {problem}")
        elif now - self._seen > PATIENCE:
            problem = f"no machine with processors for {PATIENCE:g} s; the same command goes on from here"
            raise ParameterError("--ray", self._address, problem)

    def _wanted(self, node: Mapping[str, Any]) -> int:
        """Return how many workers a machine has room for."""
        return int(node["Resources"].get("GPU", 0)) if self._cards else int(node["Resources"].get("CPU", 0) >= 1)

    def _started(self, node: Mapping[str, Any]) -> ClusterWorker:
        """Start a worker that has a card, or all processors of its machine; Ray says to a process how many it has."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        n_cpus = node["Resources"].get("CPU", 0)
        share: dict[str, Any] = {"num_cpus": n_cpus}
        if self._cards:
            share = {"num_cpus": n_cpus // self._wanted(node), "num_gpus": 1}
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        # threads of which each waits for the answer to a line
        actor = ray.remote(ModelActor).options(scheduling_strategy=place, max_concurrency=64, **share).remote()
        return ClusterWorker(node["NodeID"], node["NodeManagerAddress"], actor, actor.load.remote(*self._load))

    def _next(self, take: Callable[[], Task | None]) -> Generator[tuple[Task, bytes], None, Task | None]:
        """Return the next line to give, None if there is none for now; yield those before it that are no requests."""
        if self._back:
            return self._back.popleft()
        while (task := take()) is not None and task.error is not None:
            yield task, failed(task, task.error)
        return task

    def _give(self, worker: ClusterWorker, take: Callable[[], Task | None]) -> Iterator[tuple[Task, bytes]]:
        """Give lines to a worker that has room: one that a worker was lost with alone."""
        while len(worker.given) < worker.room and not any(t.number in self._losses for t in worker.given.values()):
            task = yield from self._next(take)
            if task is None:
                return
            if task.number in self._losses and worker.given:
                self._back.appendleft(task)
                return
            worker.given[worker.actor.answer.remote(task)] = task

    def _collect(self) -> Iterator[tuple[Task, bytes]]:
        """Wait a little for workers, and yield what has been answered."""
        import ray

        by_ref = {ref: worker for worker in self._workers for ref in (worker.loading, *worker.given) if ref is not None}
        if not by_ref:
            time.sleep(LOOK)
            return
        done, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
        if not done:
            done, _ = ray.wait(list(by_ref), timeout=LOOK)
        for ref in done:
            worker = by_ref[ref]
            if worker not in self._workers:
                continue
            try:
                value = ray.get(ref)
            except ray.exceptions.RayTaskError:  # a bug
                raise
            except ray.exceptions.RayError:
                self._lost(worker)
                continue
            if ref == worker.loading:
                self._loaded(worker, value)
            else:
                yield worker.given.pop(ref), value

    def _loaded(self, worker: ClusterWorker, result: int | str) -> None:
        """Take what `ModelActor.load` returned: the room of a worker, or why its machine is left out."""
        worker.loading = None
        if isinstance(result, int):
            worker.room = result
            return
        self._leave_out(worker, result)

    def _leave_out(self, worker: ClusterWorker, problem: str) -> None:
        self._workers.remove(worker)
        if worker.machine not in self._left_out:
            self._left_out[worker.machine] = f"{worker.name}: {problem}"
            self._tell(f"{worker.name} is left out: {problem}")

    def _lost(self, worker: ClusterWorker) -> None:
        """Take the lines of a worker back. Raises ParameterError for a line that too many were lost with."""
        import ray

        if worker.loading is not None:
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            if worker.machine in alive:
                self._leave_out(worker, "its process ended while it loaded the model")
                return
        self._workers.remove(worker)
        with suppress(ray.exceptions.RayError):
            ray.kill(worker.actor)
        lines = sorted(worker.given.values(), key=lambda task: task.number)
        held = f"its {len(lines)} lines go to others" if len(lines) != 1 else "its line goes to another"
        self._tell(f"{worker.name} is lost; {held if lines else 'it had no lines'}")
        for task in reversed(lines):
            self._losses[task.number] = self._losses.get(task.number, 0) + 1
            if self._losses[task.number] >= LOSSES:
                problem = f"{LOSSES} workers were lost while they answered it"
                raise ParameterError("--ray", f"line {task.number}", problem)
            self._back.appendleft(task)
