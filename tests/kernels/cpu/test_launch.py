"""Programs do every item once, in the order of their stages, with any number of threads."""

import numpy as np
import pytest

pytest.importorskip("llvmlite")


from llava_ref.kernels.cpu import compiled
from llava_ref.kernels.cpu import launch as launches
from llava_ref.kernels.cpu.compiled import kernel
from llava_ref.kernels.cpu.launch import Launch, Program, arguments, run
from llava_ref.kernels.cpu.simd import f64, i64, load, store
from llava_ref.kernels.cpu.traced import loop


@pytest.fixture(autouse=True, scope="module")
def fresh(tmp_path_factory):
    """Keep kernels of this file elsewhere: the folder's name says nothing of the sources of tests."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("kernels")
        patch.setattr(compiled, "folder", lambda: home)
        yield


@kernel
def step(args, first, end):
    """Replace x by 3 x + add for some items."""
    x, add = load(i64, args), load(i64, args + 8)
    for i in loop(first, end):
        store(load(i64, x + 8 * i) * 3 + add, x + 8 * i)


@kernel
def number(args, first, end):
    """Store a float argument."""
    store(load(f64, args + 8), load(i64, args))


def stepping(x, add, grain):
    return Launch(step, arguments(x.ctypes.data, add), len(x), grain)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("grain", [1, 7, 1000, 5000])
class TestProgram:
    def test_does_every_item_of_every_stage_once(self, threads, grain):
        x = np.arange(1000)
        expected = (x * 3 + 1) * 3 + 2
        Program([[stepping(x, 1, grain)], [stepping(x, 2, grain)]]).run(threads)
        assert (x == expected).all()

    def test_does_all_launches_of_a_stage(self, threads, grain):
        parts = [np.arange(n) for n in (1000, 3, 0, 17)]
        expected = [x * 3 + i for i, x in enumerate(parts)]
        run(*(stepping(x, i, grain) for i, x in enumerate(parts)), threads=threads)
        assert all((x == y).all() for x, y in zip(parts, expected, strict=True))

    def test_touches_nothing_behind_its_items(self, threads, grain):
        x = np.arange(1010)
        run(stepping(x[5:1005], 0, grain), threads=threads)
        assert (x[:5] == np.arange(5)).all() and (x[1005:] == np.arange(1005, 1010)).all()

    def test_runs_again(self, threads, grain):
        x, program = np.zeros(1000, np.int64), None
        program = Program([[stepping(x, 1, grain)]] * 20)
        for _ in range(10):
            x[:] = 0
            program.run(threads)
        assert (x == (3**20 - 1) // 2).all()


def test_threads_of_python_do_the_same_where_there_is_no_openmp(monkeypatch):
    monkeypatch.setattr(launches, "_symbol", lambda name: 0)
    x = np.zeros(1000, np.int64)
    program = Program([[stepping(x, 1, 10)]] * 20)
    for threads in (2, 3):
        x[:] = 0
        program.run(threads)
        assert (x == (3**20 - 1) // 2).all()


def test_openmp_is_found():
    pytest.importorskip("torch")
    assert launches._symbol("GOMP_parallel") or not launches._symbol("usleep")


def test_a_float_is_handed_over():
    out = np.zeros(1)
    run(Launch(number, arguments(out.ctypes.data, 0.1), 1, 1), threads=2)
    assert out[0] == 0.1


def test_an_empty_program_does_nothing():
    Program([]).run(2)
    Program([[], [Launch(number, arguments(0, 0.1), 0, 1)]]).run(2)
