"""Run a program on several threads: every thread goes through its stages, and takes work while there is some.

A stage's work is counted in units (a launch's grain of items); a thread takes a quarter of its share of what is left,
at least one unit, by adding to the stage's counter. So one whose processor is taken away by another process does less.
A stage is over when its units are done, not when all threads have come: a thread that was late finds nothing to do
and goes on. One that waits spins for some microseconds, then sleeps in naps, so that its processor is free for the
thread that is waited for.

A program is an int64 array: the number of stages; then 64 bytes a stage, from byte 64 on; then 64 bytes a launch.
"""

from llvmlite import ir
from numba import types

from .functions import compiled, inlined, kernel
from .simd import I32, I64, SET, call, load, operation, pointer, store

STAGE = ("taken", "done", "units", "launches", "first launch")  # words of a stage, from byte 64 on
LAUNCH = ("kernel", "args", "items", "grain", "units")
RECORD = 64
SPINS = 400
"""Looks at the counter before a nap, some microseconds."""
NAP = 20
FORK = types.void(types.int64, types.int64, types.int64, types.int64, types.int64)
WORK = types.void(types.int64, types.int64, types.int64)


@operation(lambda address, amount: types.int64)
def add_at(builder, address, amount):
    """Add to a number that other threads add to as well, and return what it was."""
    return builder.atomic_rmw("add", pointer(builder, I64, address), amount, "seq_cst")


@operation(lambda address: types.int64)
def seen(builder, address):
    """Read a number that other threads add to, and with it what they wrote before."""
    return builder.load_atomic(pointer(builder, I64, address), "seq_cst", 8)


@operation(lambda: types.void)
def pause(builder):
    """Wait for some cycles."""
    if SET != "portable":
        call(builder, "llvm.x86.sse2.pause", ir.VoidType())


@operation(lambda address, args, first, end: types.void)
def launch(builder, address, args, first, end):
    """Call a kernel by its address."""
    builder.call(pointer(builder, ir.FunctionType(ir.VoidType(), [I64] * 3), address), [args, first, end])


@operation(lambda address, microseconds: types.void)
def nap(builder, address, microseconds):
    """Sleep: call `usleep` by its address."""
    builder.call(pointer(builder, ir.FunctionType(I32, [I32]), address), [builder.trunc(microseconds, I32)])


@operation(lambda address, function, data, threads: types.void)
def fork(builder, address, function, data, threads):
    """Call a function of one pointer on a number of threads: libgomp's `GOMP_parallel` by its address."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I32, I32])
    builder.call(pointer(builder, kind, address), [function, data, builder.trunc(threads, I32), ir.Constant(I32, 0)])


@inlined
def word(at, i):
    """Read word i of a record."""
    return load(types.int64, at + 8 * i)


@inlined
def part(at, first, end):
    """Do units `first` to `end - 1` of a launch; the last unit has the items that are left over."""
    grain = word(at, 3)
    launch(word(at, 0), word(at, 1), first * grain, word(at, 2) if end == word(at, 4) else end * grain)


@inlined
def units(program, stage, first, end):
    """Do units `first` to `end - 1` of a stage, which may be of several launches."""
    at = program + word(stage, 4)
    for _ in range(word(stage, 3)):
        count = word(at, 4)
        if first < count and end > 0:
            part(at, max(first, 0), min(end, count))
        first -= count
        end -= count
        at += RECORD


@inlined
def wait(stage, count, usleep):
    """Wait until `count` units of a stage are done."""
    spins = 0
    while seen(stage + 8) < count:
        spins += 1
        if spins > SPINS and usleep != 0:
            nap(usleep, NAP)
        else:
            pause()


def work(program):
    """Do a program, on each of its threads."""
    threads, usleep, stage = word(program, 1), word(program, 2), program + RECORD
    for _ in range(word(program, 0)):
        count = word(stage, 2)
        while True:
            share = max((count - seen(stage)) // (4 * threads), 1)
            first = add_at(stage, share)
            if first >= count:
                break
            end = min(first + share, count)
            units(program, stage, first, end)
            add_at(stage + 8, end - first)
        wait(stage, count, usleep)
        stage += RECORD


WORKER = compiled(work, types.void(types.int64))


@kernel
def start(program, worker, gomp):
    """Set the counters to zero, and do a program on its threads."""
    stage = program + RECORD
    for _ in range(word(program, 0)):
        store(0, stage)
        store(0, stage + 8)
        stage += RECORD
    fork(gomp, worker, program, word(program, 1))


@kernel
def alone(program, first, end):
    """Do a program on this thread."""
    stage = program + RECORD
    for _ in range(word(program, 0)):
        units(program, stage, 0, word(stage, 2))
        stage += RECORD
