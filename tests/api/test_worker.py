"""Tests the worker with jobs that only count: who runs beside whom, in which order, and how each ends."""

import asyncio
import threading
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")

from llava_ref.api import worker as module
from llava_ref.api.errors import ApiError
from llava_ref.api.handler import answer_pieces
from llava_ref.api.worker import ENDED, ModelJob, Worker
from llava_ref.generation.answer import Stream, Turn
from llava_ref.generation.request import Clock
from llava_ref.tracing.trace import Probes

TIMEOUT = 20


class Counting:
    """A model of jobs that do nothing. `log` has every turn, as the job's name and what it did."""

    def __init__(self, together):
        self.together, self.probes, self.log = together, Probes(), []
        self.gate = threading.Semaphore(0)
        """A job that waits at a gate takes one of these."""

    def job(self, name, *turns):
        """`turns`: "p" a stretch of a prompt, "t" a token without text, a number: so many items, "gate": waits.
        "endless": stretches, "forever": tokens, without end."""
        job = ModelJob(self, lambda: self._work(name, turns), lambda: self.log.append((name, "end")))
        job.name = name
        return job

    def _work(self, name, turns):
        try:
            for turn in turns:
                for _ in count() if turn in ("endless", "forever") else range(turn if isinstance(turn, int) else 1):
                    if turn in ("p", "endless"):
                        yield Turn.PROMPT
                    elif turn == "gate":
                        assert self.gate.acquire(timeout=TIMEOUT)
                    self.log.append((name, turn))
                    if isinstance(turn, Exception):
                        raise turn
                    if turn not in ("p", "endless"):
                        yield {"name": name} if isinstance(turn, int) else Turn.TOKEN
        finally:
            self.log.append((name, threading.current_thread().name))

    def order(self, *kinds):
        return "".join(name for name, turn in self.log if turn in kinds)


@contextmanager
def working():
    worker = Worker()
    try:
        yield worker
    finally:
        worker.drain(0)
        worker.join(TIMEOUT)
        assert not worker.alive


async def items(job):
    """Take everything that a job gives; return how many objects, and what came last."""
    count = 0
    while True:
        item = await asyncio.wait_for(job.take(), TIMEOUT)
        if not isinstance(item, dict):
            return count, item
        count += 1


async def until(condition):
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.001)


def serve(scenario):
    """Run a scenario `async (worker)` on an event loop, beside a worker."""

    async def run():
        with working() as worker:
            return await scenario(worker)

    return asyncio.run(run())


def held(model, names, *turns):
    """Return jobs behind one that holds the thread until the gate is opened, so that all are queued together."""
    return [model.job("!", "gate"), *(model.job(name, *turns) for name in names)]


async def all_of(worker, model, jobs):
    for job in jobs:
        worker.submit(job)
    await until(lambda: worker.waiting + worker.running == len(jobs))
    model.gate.release()
    return [await items(job) for job in jobs]


@pytest.mark.parametrize("together", [1, 2, 4])
def test_so_many_run_at_once_and_all_get_the_same(together):
    model, most = Counting(together), []

    async def scenario(worker):
        jobs = held(model, "abcdef", 6)
        for job in jobs[1:]:
            turn = job.turn
            job.turn = lambda turn=turn: (most.append(worker.running), turn())[1]
        a_round = worker._round
        worker._round = lambda: (model.log.append(("|", "round")), a_round())
        assert await all_of(worker, model, jobs) == [(0, ENDED), *[(6, ENDED)] * 6]
        await until(lambda: worker.running == worker.waiting == 0)  # it leaves behind its last item

    serve(scenario)
    assert max(most) == together
    if together == 1:
        assert model.order(6) == "".join(name * 6 for name in "abcdef")
    else:
        rounds = [sorted(round) for round in model.order(6, "round").split("|")]
        assert all(len(round) == len(set(round)) <= together for round in rounds), "tokens are dealt out in turn"
        assert sum(len(round) == together for round in rounds) >= 4


@pytest.mark.parametrize("together", [1, 3])
def test_first_come_first_served_at_once_too(together):
    model = Counting(together)
    serve(lambda worker: all_of(worker, model, held(model, "abcdefgh", "p", 3)))
    seen = model.order("p")
    assert seen == "abcdefgh", "prompts are run in the order in which they came"


def test_prompts_are_run_one_after_the_other_and_tokens_in_between():
    model = Counting(3)
    jobs = []

    async def scenario(worker):
        jobs.extend([model.job("a", "gate", 30), model.job("b", *"pppp", 2), model.job("c", *"pppp", 2)])
        return await all_of(worker, model, jobs)

    assert serve(scenario) == [(30, ENDED), (2, ENDED), (2, ENDED)]
    order = model.order("p", 30)
    assert [name for name in order if name != "a"] == [*"bbbbcccc"]
    assert "bb" not in order and "cc" not in order and "bc" not in order


def test_a_model_that_runs_one_at_a_time_waits_for_those_before_it():
    """As when another model has been loaded: nobody overtakes it either."""
    several, single = Counting(4), Counting(1)
    single.log, beside = several.log, []

    async def scenario(worker):
        jobs = [*held(several, "ab", 5), single.job("c", 5), several.job("d", 5)]
        turn = jobs[3].turn
        jobs[3].turn = lambda: (beside.append(worker.running), turn())[1]
        return await all_of(worker, several, jobs)

    assert serve(scenario) == [(0, ENDED), *[(5, ENDED)] * 4]
    assert several.order(5)[10:] == "cccccddddd" and set(beside) == {1}


def test_a_cancelled_job_ends_and_the_others_do_not():
    model = Counting(3)

    async def scenario(worker):
        jobs = [model.job("a", 1, "gate", 20), model.job("b", 2, "forever"), model.job("c", "endless")]
        for job in jobs:
            worker.submit(job)
        await until(lambda: ("b", 2) in model.log)
        for job in jobs[1:]:
            worker.cancel(job)
        model.gate.release()
        assert await items(jobs[0]) == (21, ENDED)
        await until(lambda: not worker.busy)

    serve(scenario)
    assert {("b", "end"), ("c", "end"), ("b", "model"), ("c", "model")} <= set(model.log), "closed in the thread"
    assert len(model.log) < 1000


def test_a_cancelled_job_does_not_wait_for_its_turn_at_the_prompt():
    model = Counting(2)

    async def scenario(worker):
        first, second = model.job("a", "endless"), model.job("b", "endless")
        for job in (first, second):
            worker.submit(job)
        await until(lambda: worker.running == 2)
        worker.cancel(second)
        await until(lambda: ("b", "end") in model.log)
        assert worker.running == 1 and ("b", "endless") not in model.log
        worker.cancel(first)

    serve(scenario)


def test_a_paused_job_whose_client_goes_wakes_an_idle_worker(monkeypatch):
    monkeypatch.setattr(module, "MAX_BEHIND", 4)
    model = Counting(2)

    async def scenario(worker):
        job = model.job("a", 50)
        worker.submit(job)
        await until(lambda: worker._paused and not worker.busy)
        await asyncio.sleep(0.05)  # until the thread waits
        worker.cancel(job)
        await until(lambda: ("a", "end") in model.log)

    serve(scenario)


def test_who_leaves_an_answer_closes_its_stream():
    """At once: what the stream holds is given back in the thread that runs the model."""
    closed = []

    def begin():
        try:
            yield Turn.PROMPT
        finally:
            closed.append(True)

    stream = Stream(SimpleNamespace(continues=False), Clock(), begin)
    pieces = answer_pieces(stream, SimpleNamespace(stream=lambda at_start: None, n_vocab=1))
    assert next(pieces) is Turn.PROMPT and not closed
    pieces.close()
    assert closed == [True]


def test_a_job_that_waits_and_is_cancelled_never_runs():
    model = Counting(1)

    async def scenario(worker):
        jobs = held(model, "ab", 1)
        for job in jobs:
            worker.submit(job)
        worker.cancel(jobs[1])
        model.gate.release()
        assert await items(jobs[2]) == (1, ENDED)

    serve(scenario)
    assert model.order(1) == "b"


@pytest.mark.parametrize("error, code", [(ValueError("secret"), "internal_error"), (ApiError(400, "x", code="y"), "y")])
def test_an_error_ends_only_its_job(error, code, caplog):
    model = Counting(3)

    async def scenario(worker):
        jobs = [*held(model, "a", 9), model.job("b", 2, error), *held(model, "c", 9)[1:]]
        return await all_of(worker, model, jobs)

    (_, *found) = serve(scenario)
    assert [found[0], found[2]] == [(9, ENDED)] * 2
    assert found[1][0] == 2 and found[1][1].code == code and ("b", "end") in model.log


@pytest.mark.parametrize("together", [1, 2])
def test_jobs_that_are_not_read_are_paused_and_the_one_paused_longest_ends(together, monkeypatch):
    monkeypatch.setattr(module, "MAX_BEHIND", 4)
    model = Counting(together)

    async def scenario(worker):
        jobs = [model.job(name, 50) for name in "abc"]
        for i, job in enumerate(jobs):
            worker.submit(job)
            await until(lambda i=i, job=job: job in worker._paused and not worker.busy)
            assert len(worker._paused) == min(i + 1, together)
            if i == together:
                break
        assert jobs[0].cancelled.is_set() and not jobs[1].cancelled.is_set()
        await until(lambda: ("a", "end") in model.log and ("a", "model") in model.log)
        count, last = await items(jobs[0])
        assert count == 5 and last.status == 408
        late = model.job("d", 3)
        worker.submit(late)
        assert await items(late) == (3, ENDED), "those that are paused are in nobody's way"
        return [await items(job) for job in jobs[1 : together + 1]]

    assert serve(scenario) == [(50, ENDED)] * together


def test_a_job_that_resumes_goes_before_those_that_wait(monkeypatch):
    monkeypatch.setattr(module, "MAX_BEHIND", 4)
    model = Counting(1)

    async def scenario(worker):
        slow, holding, late = model.job("a", 8), model.job("b", "gate"), model.job("c", 1)
        worker.submit(slow)
        await until(lambda: worker._paused)
        for job in (holding, late):
            worker.submit(job)
        await until(lambda: worker.running and worker.waiting)
        reading = asyncio.create_task(items(slow))
        await until(lambda: slow.ready)
        model.gate.release()
        assert await reading == (8, ENDED) and await items(late) == (1, ENDED)

    serve(scenario)
    assert model.order(8, 1) == "a" * 8 + "c"


def test_a_paused_job_whose_client_goes_ends_beside_a_full_house(monkeypatch):
    monkeypatch.setattr(module, "MAX_BEHIND", 4)
    model = Counting(1)

    async def scenario(worker):
        slow, other = model.job("a", 50), model.job("b", "forever")
        worker.submit(slow)
        await until(lambda: worker._paused)
        worker.submit(other)
        await until(lambda: worker.busy)
        worker.cancel(slow)
        await until(lambda: ("a", "end") in model.log)
        assert not other.cancelled.is_set() and worker.running == 1
        worker.cancel(other)
        await until(lambda: not worker.busy)

    serve(scenario)


def test_draining_refuses_who_waits_and_stops_who_runs_after_the_grace():
    model = Counting(2)

    async def scenario(worker):
        short, endless, waiting = model.job("a", "gate", 3), model.job("b", "forever"), model.job("c", 1)
        for job in (short, endless, waiting):
            worker.submit(job)
        await until(lambda: worker.running == 2)
        worker.drain(1.0)
        with pytest.raises(ApiError) as caught:
            worker.submit(model.job("d", 1))
        assert caught.value.code == "shutting_down"
        model.gate.release()
        assert (await items(waiting))[1].code == "shutting_down"
        assert await items(short) == (3, ENDED)
        assert (await items(endless))[1].code == "shutting_down"

    serve(scenario)
    assert model.order("end") == "ab" and not model.order(1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_everybody_is_told_when_the_thread_dies():
    model = Counting(2)

    async def scenario(worker):
        jobs = [model.job("a", 1, SystemExit()), model.job("b", 10**6), model.job("c", 1), model.job("d", 1)]
        jobs[0]._work = lambda: iter(die())
        for job in jobs:
            worker.submit(job)
        assert [(await items(job))[1].code for job in jobs] == ["worker_dead"] * 4
        await until(lambda: not worker.alive)

    def die():
        yield {}
        raise SystemExit

    serve(scenario)
