"""Run a program on several threads: every thread goes through its stages, and takes work while there is some.

A stage's work is counted in units (a launch's grain of items); a thread takes a quarter of its share of what is left,
at least one unit, by adding to the stage's counter. So one whose processor is taken away by another process does less.
A stage is over when its units are done, not when all threads have come: a thread that was late finds nothing to do
and goes on. One that waits spins for some microseconds, then sleeps in naps, so that its processor is free for the
thread that is waited for.

A program is an int64 array: the number of stages; then 64 bytes a stage, from byte 64 on; then 64 bytes a launch.
"""

from typing import Any

from llvmlite import ir

from .compiled import kernel
from .llvm import I32, I64, call, pointer
from .processor import SET
from .simd import i64, load, store
from .traced import Cell, Number, least, loop, most, operation, otherwise, pick, turns, when

STAGE = ("taken", "done", "units", "launches", "first launch")  # words of a stage, from byte 64 on
LAUNCH = ("kernel", "args", "items", "grain", "units")
RECORD = 64
SPINS = 400
"""Looks at the counter before a nap, some microseconds."""
NAP = 20


@operation
def add_at(builder, address, amount):
    """Add to a number that other threads add to as well, and return what it was."""
    return builder.atomic_rmw("add", pointer(builder, I64, address), amount, "seq_cst")


@operation
def seen(builder, address):
    """Read a number that other threads add to, and with it what they wrote before."""
    return builder.load_atomic(pointer(builder, I64, address), "seq_cst", 8)


@operation
def pause(builder):
    """Wait for some cycles."""
    if SET != "portable":
        call(builder, "llvm.x86.sse2.pause", ir.VoidType())


@operation
def launch(builder, address, args, first, end):
    """Call a kernel by its address."""
    builder.call(pointer(builder, ir.FunctionType(ir.VoidType(), [I64] * 3), address), [args, first, end])


@operation
def nap(builder, address, microseconds):
    """Sleep: call `usleep` by its address."""
    builder.call(pointer(builder, ir.FunctionType(I32, [I32]), address), [builder.trunc(microseconds, I32)])


@operation
def fork(builder, address, function, data, threads):
    """Call a function of one pointer on a number of threads: libgomp's `GOMP_parallel` by its address."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I32, I32])
    builder.call(pointer(builder, kind, address), [function, data, builder.trunc(threads, I32), ir.Constant(I32, 0)])


def word(at: Number, i: int) -> Any:
    """Read word i of a record."""
    return load(i64, at + 8 * i)


def units(program: Number, stage: Number, first: Number, end: Number) -> None:
    """Do units `first` to `end - 1` of a stage, which may be of several launches. A launch's last has its odd items."""
    at, before = Cell(program + word(stage, 4)), Cell(0)
    for _ in loop(0, word(stage, 3)):
        record, count, grain = at.value, word(at.value, 4), word(at.value, 3)
        start, stop = most(first - before.value, 0), least(end - before.value, count)
        with when(start < stop):
            items = pick(stop == count, word(record, 2), stop * grain)
            launch(word(record, 0), word(record, 1), start * grain, items)
        before.value = before.value + count
        at.value = record + RECORD


def wait(stage: Number, count: Number, usleep: Number) -> None:
    """Wait until `count` units of a stage are done."""
    spins = Cell(0)
    for turn in turns():
        with when(seen(stage + 8) >= count):
            turn.leave()
        spins.value = spins.value + 1
        tired = (spins.value > SPINS) & (usleep != 0)
        with when(tired):
            nap(usleep, NAP)
        with otherwise(tired):
            pause()


@kernel
def work(program: Number, first: Number, end: Number) -> None:
    """Do a program, on each of its threads. OpenMP gives the first argument only, and no other is looked at."""
    threads, usleep = word(program, 1), word(program, 2)
    for i in loop(1, word(program, 0) + 1):
        stage = program + RECORD * i
        count = word(stage, 2)
        for turn in turns():
            share = most((count - seen(stage)) // (4 * threads), 1)
            taken = add_at(stage, share)
            with when(taken >= count):
                turn.leave()
            stop = least(taken + share, count)
            units(program, stage, taken, stop)
            add_at(stage + 8, stop - taken)
        wait(stage, count, usleep)


@kernel
def start(program: Number, worker: Number, gomp: Number) -> None:
    """Set the counters to zero, and do a program on its threads."""
    for i in loop(1, word(program, 0) + 1):
        store(0, program + RECORD * i)
        store(0, program + RECORD * i + 8)
    fork(gomp, worker, program, word(program, 1))


@kernel
def alone(program: Number, first: Number, end: Number) -> None:
    """Do a program on this thread."""
    for i in loop(1, word(program, 0) + 1):
        stage = program + RECORD * i
        units(program, stage, 0, word(stage, 2))
