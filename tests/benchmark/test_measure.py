"""Repetitions on clocks of our own: what is timed, what is refused, what is counted."""

import pytest

from llava_ref.benchmark import measure
from llava_ref.benchmark.measure import Clocks, Stopwatch, machine_busy, repeat


class Time:
    """Clocks that move only when a test says so; others use `others` processors all the while."""

    def __init__(self, others=0.0, processors=4):
        self.wall, self.own, self.others, self.busy = 100.0, 10.0, others, 1000.0
        self.clocks = Clocks(lambda: self.wall, lambda: self.own, lambda: self.busy, processors)

    def work(self, seconds, processors=1.0):
        self.wall += seconds
        self.own += seconds * processors
        self.busy += seconds * (processors + self.others)


def test_a_lap_is_wall_time_and_processors():
    time = Time(others=0.25)
    waits = []
    watch = Stopwatch(time.clocks, lambda: waits.append(time.wall))

    def run():
        time.work(1.0)
        with watch.lap("prefill"):
            time.work(2.0, 1.5)
        with watch.lap("decode"):
            time.work(0.5, 0.5)

    found = watch.repetition(run)
    assert (found.seconds, found.others) == (3.5, pytest.approx(0.25))
    assert {stage: (lap.seconds, lap.processors) for stage, lap in found.laps.items()} == {
        "prefill": (2.0, 1.5),
        "decode": (0.5, 0.5),
    }
    assert waits == [101.0, 103.0, 103.0, 103.5], "the device is waited for before a lap and at its end"


def repeated_in_turn(time, others, n, runs, **options):
    """Repeat a second of work, or several in turn, while others use what the list says, one after the other."""
    left = list(others)
    watch = Stopwatch(time.clocks, lambda: None)

    def work():
        time.others = left.pop(0)
        with watch.lap("work"):
            time.work(1.0 + time.others)

    return repeat([lambda: watch.repetition(work)] * runs, n, time.clocks.processors, **options)


def repeated(time, others, n=3, **options):
    (found,) = repeated_in_turn(time, others, n, 1, **options)
    return found


def test_quiet_repetitions_are_kept_as_they_come():
    found = repeated(Time(), [0.0, 0.1, 0.35, 9.0])
    assert (len(found.kept), found.n_refused, found.n_noisy) == (3, 0, 0)
    assert sorted(found.seconds("work")) == pytest.approx([1.0, 1.1, 1.35])
    assert found.median("work") == pytest.approx(1.1) and found.processors("work") == pytest.approx(1.0)
    assert found.others == pytest.approx(0.35), "up to a tenth of four processors is still quiet"


def test_noisy_ones_are_refused_and_counted():
    found = repeated(Time(), [3.0, 0.0, 0.5, 0.1, 0.2])
    assert (len(found.kept), found.n_refused, found.n_noisy) == (3, 2, 0)
    assert found.others == pytest.approx(0.2)


def test_the_least_noisy_count_where_too_few_were_quiet():
    found = repeated(Time(), [3.0, 2.0, 0.0, 1.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert (len(found.kept), found.n_refused, found.n_noisy) == (3, 6, 2)
    assert [one.others for one in found.kept] == pytest.approx([0.0, 1.0, 2.0])


def test_a_turn_counts_whole_or_not_at_all():
    """The second of two runs is disturbed in the first turn, the first in the third."""
    ours, theirs = repeated_in_turn(Time(), [0.0, 2.0, 0.1, 0.2, 3.0, 0.0, 0.3, 0.35], 2, 2)
    assert ours.seconds("work") == pytest.approx([1.1, 1.3]) and theirs.seconds("work") == pytest.approx([1.2, 1.35])
    assert (ours.n_refused, ours.n_noisy, theirs.n_refused, theirs.n_noisy) == (2, 0, 2, 0)


def test_the_least_noisy_turns_are_those_whose_worst_run_is():
    ours, theirs = repeated_in_turn(Time(), [5.0, 0.0, 1.0, 1.0, 0.0, 4.0], 1, 2)
    assert ours.seconds("work") == theirs.seconds("work") == [2.0] and (ours.n_refused, ours.n_noisy) == (2, 1)


def test_what_is_done_between_repetitions_does_not_count():
    time, calls = Time(), []

    def between():
        calls.append(time.wall)
        time.work(50.0, 4.0)

    found = repeated(time, [0.0, 0.0], n=2, between=between)
    assert len(calls) == 2 and found.seconds("work") == [1.0, 1.0] and found.others == 0


def test_nothing_is_refused_where_the_system_does_not_say():
    time = Time()
    time.clocks = Clocks(time.clocks.wall, time.clocks.own, lambda: None, 4)
    found = repeated(time, [9.0, 9.0, 9.0])
    assert (len(found.kept), found.n_refused, found.n_noisy, found.others) == (3, 0, 0, None)
    assert found.median("never") is None and found.seconds("never") == []


def test_the_machine_s_time_is_that_of_its_file(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    monkeypatch.setattr(measure, "STAT", stat)
    assert machine_busy() is None
    stat.write_text("cpu  10 20 30 9999 9999 40 50 60 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    monkeypatch.setattr(measure.os, "sysconf", lambda name: 100)
    assert machine_busy() == pytest.approx(2.1), "idle and waiting for a disk are left out"
    stat.write_text("nothing")
    assert machine_busy() is None
