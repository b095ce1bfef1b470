"""What runs on each machine of a cluster: a model in a process of its own, and lines that come one by one."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread

from ..errors import LlavaError
from .answering import AHEAD, Answerer
from .lines import Task

Facts = Mapping[str, object]


class ModelActor:
    """Loads a model, and answers as many lines at once as share its steps. Its methods are called in threads."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[Task, Future[bytes]]] = SimpleQueue()

    def load(self, facts: Callable[[], Facts], expected: Facts, start: Callable[[], Answerer]) -> int | str:
        """Load the model; return how many lines are to be here at once, or what is wrong with this machine."""
        try:
            found = facts()
            for name, value in expected.items():
                if found.get(name) != value:
                    return f"{name}: {found.get(name, 'absent')} there, {value} here"
            answerer = start()
        except (LlavaError, OSError) as error:
            return str(error)
        Thread(target=self._run, args=[answerer], daemon=True).start()
        return answerer.together + AHEAD

    def answer(self, task: Task) -> bytes:
        """Answer a line."""
        answer: Future[bytes] = Future()
        self._asked.put((task, answer))
        return answer.result()

    def _run(self, answerer: Answerer) -> None:
        """Answer whatever is asked, for ever."""
        waiting: dict[int, Future[bytes]] = {}
        first: list[Task] = []

        def take() -> Task | None:
            if first:
                return first.pop()
            try:
                task, waiting_for = self._asked.get_nowait()
            except Empty:
                return None
            waiting[task.number] = waiting_for
            return task

        while True:
            task, answer = self._asked.get()
            waiting[task.number] = answer
            first.append(task)
            try:
                for done, line in answerer.each(take):
                    waiting.pop(done.number).set_result(line)
            except Exception as error:
                for left in waiting.values():
                    left.set_exception(error)
                waiting.clear()
