"""Threads follow the size of the work, wait asleep, and are whoever's they were before."""

import os
import subprocess
import sys
import warnings
from threading import Thread

import numpy as np
import pytest
import torch

import llava_ref
from llava_ref.generation.sampling import Sampling
from llava_ref.ops import numpy_ops, threads, torch_ops
from llava_ref.ops.numpy_ops import NumpyOps
from llava_ref.ops.threads import processors, worth
from llava_ref.ops.torch_ops import TorchOps
from llava_ref.tracing import distance as measure
from llava_ref.tracing.trace import Probe

from ..support.tiny_pair import VICUNA, Tiny, write_pair

LLAMA_7B, SMOLLM2, EMBEDDED = 11008 * 4096, 1536 * 576, 512 * 192


@pytest.mark.parametrize(
    "rows, weights, most, expected",
    [
        (1, EMBEDDED, 64, 1),
        (80, EMBEDDED, 64, 1),
        (64, 512 * 128, 64, 1),  # the embedded tower
        (1, SMOLLM2, 64, 1),
        (512, SMOLLM2, 2, 2),
        (512, SMOLLM2, 64, 27),
        (1, LLAMA_7B, 2, 2),
        (1, LLAMA_7B, 64, 43),
        (512, LLAMA_7B, 64, 64),
        (577, 4096 * 1024, 64, 64),  # the tower of CLIP-L
        (0, 0, 64, 1),
        (512, LLAMA_7B, 1, 1),
    ],
)
def test_threads_follow_the_size_of_the_work(rows, weights, most, expected):
    assert worth(rows, weights, most) == expected


@pytest.mark.parametrize(
    "text, bound, expected",
    [("200000 100000", 8, 2), ("max 100000", 8, 8), ("50000 100000", 8, 1), ("150000 100000", 1, 1), ("", 3, 3)],
)
def test_a_container_s_quota_counts(tmp_path, monkeypatch, text, bound, expected):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound)), raising=False)
    assert processors() == expected


class Count(Probe):
    """The threads that torch and numpy's library have while a pass runs."""

    def __init__(self) -> None:
        super().__init__(["*"])
        self.torch: set[int] = set()
        self.blas: set[int] = set()

    def see(self, x, at):
        if not at.name.startswith("image."):
            self.torch.add(torch.get_num_threads())
            self.blas |= {library.get_num_threads() for library in threads.blas()[0]}
        return x


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), Tiny(template=VICUNA))


@pytest.fixture
def seven():
    """Torch and numpy's library with seven threads each, as somebody else may have set them."""
    before, libraries = torch.get_num_threads(), threads.blas()[0]
    numbers = [library.get_num_threads() for library in libraries]
    torch.set_num_threads(7)
    for library in libraries:
        library.set_num_threads(7)
    yield
    torch.set_num_threads(before)
    for library, number in zip(libraries, numbers, strict=True):
        library.set_num_threads(number)


def now() -> set[int]:
    return {torch.get_num_threads(), *(library.get_num_threads() for library in threads.blas()[0])}


def look(model) -> Count:
    """Everything that a model does: the tower, the decoder, an answer, the logits of any layer."""
    picture = np.zeros((20, 30, 3), np.uint8)
    with model.probed(Count()) as count:
        model.logits("red <image>", [picture])
        model.answer(model.raw_request("red"), Sampling(), max_tokens=3).finish()
        model.unembed(np.zeros((3, model.text.config.width), np.float32))
    return count


@pytest.mark.parametrize("precision", ["exact", "ggml"])
def test_a_small_model_has_one_thread_on_torch(pair, seven, precision, monkeypatch):
    monkeypatch.setattr(torch_ops, "MOST", 64)
    count = look(llava_ref.load(*pair, precision=precision))
    assert count.torch == {1} and (precision == "exact" or count.blas == {1})
    assert now() == {7}


@pytest.mark.parametrize("precision", ["exact", "ggml"])
def test_numpy_s_library_has_one_thread_whatever_is_asked_for(pair, seven, precision):
    for number in (None, 3):
        assert look(llava_ref.load(*pair, backend="numpy", precision=precision, threads=number)).blas == {1}
        assert now() == {7}


def test_an_explicit_number_is_kept(pair, seven, monkeypatch):
    assert look(llava_ref.load(*pair, threads=3)).torch == {3}
    shares = []
    monkeypatch.setattr(numpy_ops, "worth", lambda *_: pytest.fail("a number was given"))
    model = llava_ref.load(*pair, backend="numpy", threads=3)
    shared = model.ops._pool.map
    monkeypatch.setattr(model.ops._pool, "map", lambda *args: shares.append(len(args[1])) or shared(*args))
    look(model)
    assert set(shares) == {3} and now() == {7}


def test_two_models_do_not_change_each_other_s_number(pair):
    one, other = llava_ref.load(*pair, threads=2), llava_ref.load(*pair, threads=4)
    assert look(one).torch == {2} and look(other).torch == {4} and look(one).torch == {2}


def test_another_thread_has_the_number_too(pair):
    model, found = llava_ref.load(*pair, threads=3), []
    worker = Thread(target=lambda: found.append(look(model).torch))
    worker.start()
    worker.join()
    assert found == [{3}]


def test_a_pass_that_fails_puts_the_number_back(pair, seven):
    for backend in ("torch", "numpy"):
        model = llava_ref.load(*pair, backend=backend)
        with pytest.raises(ZeroDivisionError), model.intervene({"blk.0.out": lambda x, at: 1 / 0}):
            model.logits("red")
        assert now() == {7}


def test_a_large_product_has_the_threads_it_is_worth(monkeypatch):
    monkeypatch.setattr(torch_ops, "MOST", 64)
    with TorchOps("cpu", None, 0).running(1, LLAMA_7B):
        assert torch.get_num_threads() == 43
    ops, shares = NumpyOps(None, 0), []
    ops._most = 5
    monkeypatch.setattr(ops._pool, "map", lambda f, *ends: shares.append(len(ends[0])) or list(map(f, *ends)))
    x, w = (np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate(((512, 300), (1001, 300))))
    np.testing.assert_allclose(ops.product(x, w), x @ w.T, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ops.product(x[:1], w), x[:1] @ w.T, rtol=0, atol=1e-4)
    assert shares == [5]


@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 2, 5), (4, 1, 8), (2, 64, 1)])
def test_shares_make_the_whole(shape):
    rows, n, k = shape
    x, w = np.random.default_rng(0).normal(size=(rows, k)), np.random.default_rng(1).normal(size=(n, k))
    x, w = x.astype(np.float32), w.astype(np.float32)
    np.testing.assert_allclose(NumpyOps(3, 0).product(x, w), x @ w.T, rtol=0, atol=1e-5)


def test_bad_numbers_warn_from_no_thread():
    x, w = np.full((2, 3), 3e38, np.float32), np.full((4, 3), 3e38, np.float32)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error")
        assert np.isinf(NumpyOps(2, 0).product(x, w)).all()


def test_measuring_takes_one_thread(seven):
    inside = []

    class Watched(np.ndarray):
        def astype(self, *args, **kwargs):
            inside.append(now())
            return np.asarray(self).astype(*args, **kwargs)

    x = np.ones(3, np.float32).view(Watched)
    assert measure.cosine(x, x) == 1 and measure.rel_rms(x, x) == 0
    assert all(1 in found for found in inside) and now() == {7}


POLICY = "import os, sys; from llava_ref.ops import get_ops; get_ops('torch', 'cpu', None, 0); " \
         "print({n: os.environ.get(n) for n in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')})"  # fmt: skip


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}], ids=str)
def test_torch_s_threads_wait_asleep_unless_told_otherwise(given):
    """libgomp says what it understood, when it is loaded, where OMP_DISPLAY_ENV asks for it."""
    clean = {name: value for name, value in os.environ.items() if name not in threads.WAITING}
    env = clean | {"OMP_DISPLAY_ENV": "VERBOSE"} | given
    done = subprocess.run([sys.executable, "-c", POLICY], capture_output=True, text=True, check=True, env=env)
    assert eval(done.stdout) == {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None} | given  # as it was
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch has another OpenMP here")
    said = {line.split("'")[1] for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line}
    count = {line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line}
    if not given:
        assert said == {"PASSIVE"} and count == {"0"}
    else:
        assert "0" not in count
