"""Decode attention against its definition in float64, over the float16 cache that it keeps."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from llava_ref.kernels import reference as ref

from ..support.helpers import close, rand
from ..support.triton_device import DEVICE

pytest.importorskip("triton")
from llava_ref.kernels.triton import decode
from llava_ref.kernels.triton.activations import Activations, quantise
from llava_ref.kernels.triton.slices import MOST_SLICES, PROGRAMS, Scratch, slices_of

BOUND = 5e-4
"""relRMS of a result: the queries and the weights of the values are rounded to float16 for the tensor cores. Measured:
up to 4.2e-4 with head size 10 and 3.7e-4 with others, in Triton's interpreter."""

EXACT = 1e-7
"""The same where one key is seen, whose weight is 1."""

EPS, GUARD, CANARY = 0.05, 64, 77  # of mean squares about 1: a missing epsilon shows


@dataclass(frozen=True)
class Shape:
    heads: tuple[int, int] = (6, 2)
    dh: int = 32
    pairs: str = "adjacent"
    window: int | None = None
    norms: bool = False
    slices: int | None = None
    room: int = 320


class Guarded:
    """Allocates tensors with a margin on both sides, which nothing may touch."""

    def __init__(self) -> None:
        self.margins: list[Tensor] = []

    def like(self, x: Tensor) -> Tensor:
        flat = torch.full((x.numel() + 2 * GUARD,), CANARY, dtype=x.dtype, device=x.device)
        self.margins += [flat[:GUARD], flat[-GUARD:]]
        inside = flat[GUARD:-GUARD].view(x.shape)
        inside.copy_(x)
        return inside

    def check(self) -> None:
        assert all((margin == CANARY).all() for margin in self.margins)


class Run:
    """A cache filled with noise before `position` and with NaN from there on, and the buffers of a step."""

    def __init__(self, shape: Shape, position: int, gain: float = 1.0) -> None:
        Hkv, dh, self.shape, self.guarded = shape.heads[1], shape.dh, shape, Guarded()
        self.position = torch.tensor([position], dtype=torch.int32, device=DEVICE)
        self.keys, self.values = (self.noise(Hkv, shape.room, dh, seed=s).half() for s in (1, 2))
        for cache in (self.keys, self.values):
            cache[:, position:] = torch.nan
        self.keys, self.values = self.guarded.like(self.keys), self.guarded.like(self.values)
        angle = 3 * self.noise(shape.room, dh // 2, seed=3)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.gains = tuple(gain * (1 + 0.3 * self.noise(dh, seed=s)) for s in (4, 5)) if shape.norms else None
        scratch = Scratch.make(shape.heads, dh, DEVICE, shape.slices)
        others = (torch.full_like(x, torch.nan) for x in (scratch.tops, scratch.totals, scratch.partial))
        self.scratch = Scratch(*map(self.guarded.like, (scratch.counters, *others)))

    @staticmethod
    def noise(*shape: int, seed: int) -> Tensor:
        return torch.from_numpy(rand(*shape, seed=seed)).to(DEVICE)

    def qkv(self, seed: int) -> Tensor:
        (H, Hkv), dh = self.shape.heads, self.shape.dh
        return self.noise(1, (H + 2 * Hkv) * dh, seed=seed)

    def launch(self, qkv: Tensor) -> Activations:
        """Run the kernel over results filled with rubbish."""
        s, K = self.shape, self.shape.heads[0] * self.shape.dh
        empty = Activations.empty(1, K, DEVICE)
        names = Activations.__slots__
        out = Activations(*(self.guarded.like(getattr(empty, name)) for name in names))
        for name, width in zip(names, (K, K // 4, K // 4, -(-K // 32), -(-K // 16)), strict=True):
            getattr(out, name)[:, :width] = torch.nan if getattr(out, name).is_floating_point() else 0x55555555
        decode.decode_attention(
            qkv, self.keys, self.values, self.position, self.cos, self.sin, out, self.scratch, heads=s.heads,
            scale=s.dh**-0.5, pairs=s.pairs, window=s.window, norms=self.gains, eps=EPS,
        )  # fmt: skip
        return out

    def expected(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result (1, H * dh) in float64, over the cache as it is stored, and the new key and value."""
        s, here = self.shape, int(self.position)
        q, k, v = qkv.double().reshape(1, -1, s.dh).split([s.heads[0], s.heads[1], s.heads[1]], 1)
        if self.gains is not None:
            q, k = (ref.rms_norm(x, gain.double(), EPS) for x, gain in zip((q, k), self.gains, strict=True))
        angles = (table[here : here + 1].double() for table in (self.cos, self.sin))
        q, k = ref.rope(torch.cat((q, k), 1), *angles, s.pairs).split(s.heads, 1)
        first = 0 if s.window is None else max(0, here - s.window + 1)
        seen = (cache[:, first : here + 1].double().permute(1, 0, 2) for cache in (self.keys, self.values))
        return ref.attention(q, *seen, s.dh**-0.5, None), k[0], v[0]


def check_step(run: Run, seed: int) -> None:
    """Run one step and hold all that it wrote, and all that it must leave alone, against the definition."""
    qkv, here = run.qkv(seed), int(run.position)
    before = run.keys.clone(), run.values.clone()
    out = run.launch(qkv)
    want, k, v = run.expected(qkv)
    stored = run.keys[:, here].double()
    assert torch.equal(run.values[:, here], v.half())
    assert ((stored - k).abs() <= 2**-11 * k.abs() + 2e-6).all()  # half a unit in the last place, and float32 before it
    assert (stored == k.half()).double().mean() > 0.99  # float32 may round the other way where float64 is near a tie
    for cache, old in zip((run.keys, run.values), before, strict=True):
        old[:, here] = cache[:, here]
        assert torch.equal(cache.view(torch.int16), old.view(torch.int16))
    K = want.shape[1]
    bound = EXACT if here == 0 or run.shape.window == 1 else BOUND
    close(out.x[:, :K].cpu().numpy(), want.cpu().numpy(), bound, f"{run.shape} at {here}")
    rounded = quantise(out.x[:, :K].contiguous())
    assert all(torch.equal(getattr(out, name), getattr(rounded, name)) for name in Activations.__slots__)
    assert not run.scratch.counters.any()
    run.guarded.check()


@pytest.mark.parametrize("position", [0, 1, 31, 63, 64, 65, 300])
@pytest.mark.parametrize("shape", [Shape(), Shape(pairs="halves", norms=True, window=64)], ids=["plain", "gemma"])
def test_positions(shape, position):
    check_step(Run(shape, position), seed=7)


@pytest.mark.parametrize("dh", [2, 10, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
def test_head_sizes(dh, pairs):
    check_step(Run(Shape((2, 1), dh, pairs, norms=pairs == "halves"), 150), seed=8)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 8, 16])
def test_queries_of_a_key(group):
    check_step(Run(Shape((2 * group, 2)), 130), seed=9)


def test_llava_1_5():
    check_step(Run(Shape((32, 32), 128, slices=3, room=100), 97), seed=10)


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 199, 200, 201, 1024])
def test_windows(window):
    check_step(Run(Shape(window=window), 200), seed=11)


@pytest.mark.parametrize("slices", [2, 3, 5, 64])
def test_slices(slices):
    check_step(Run(Shape((4, 2), slices=slices), 319), seed=12)


def test_large_scores():
    """Scores of some hundreds: one key takes nearly all, and the largest moves from block to block."""
    check_step(Run(Shape(norms=True, slices=2), 300, gain=12.0), seed=13)


@pytest.mark.parametrize("shape", [Shape(), Shape(pairs="halves", norms=True, window=3), Shape((2, 1), 80)], ids=str)
def test_steps_in_a_row(shape):
    run = Run(shape, 62)
    for seed in range(20, 25):
        check_step(run, seed)
        run.position += 1


def test_the_result_does_not_depend_on_who_finishes_last(monkeypatch):
    run = Run(Shape((4, 2), slices=5), 300)
    qkv = run.qkv(14)
    first = run.launch(qkv)
    if DEVICE == "cpu":
        from triton.runtime.interpreter import interpreter_builder as programs

        start = programs.set_grid_idx
        monkeypatch.setattr(programs, "set_grid_idx", lambda x, y, z: start(x, 4 - y, z))
    for _ in range(1 if DEVICE == "cpu" else 200):
        again = run.launch(qkv)
        assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in Activations.__slots__)


def test_a_cache_with_gaps_between_heads_and_rows():
    run = Run(Shape(), 100)
    shapes = (2, 320, 3, 32), (2, 330, 2, 32)
    gaps = [torch.full(shape, torch.nan, dtype=torch.float16, device=DEVICE) for shape in shapes]
    for wide, cache in zip(gaps, (run.keys, run.values), strict=True):
        wide[:, :320, 1] = cache
    run.keys, run.values = (wide[:, :320, 1] for wide in gaps)
    check_step(run, seed=15)
    assert all(wide[:, :, ::2].isnan().all() for wide in gaps)


def test_slices_fill_the_device():
    assert [slices_of(Hkv, 132) for Hkv in (1, 4, 8, 32, 40)] == [MOST_SLICES, MOST_SLICES, 49, 12, 9]
    assert slices_of(1000, 132) == 2 and slices_of(32, 132) * 32 <= PROGRAMS * 132


@pytest.mark.parametrize(
    "change, message",
    [
        ({"window": 0}, "window: 0, expected a positive number"),
        ({"heads": (34, 2)}, "heads: (34, 2), expected 1 to 16"),
        ({"heads": (5, 2)}, "heads: (5, 2), expected 1 to 16"),
        ({"heads": (4, 2)}, "qkv: torch.float32 (1, 320)"),
        ({"qkv": torch.zeros(2, 320)}, "qkv: torch.float32 (2, 320)"),
        ({"keys": torch.zeros(2, 320, 32)}, "keys: torch.float32 (2, 320, 32)"),
        ({"keys": torch.zeros(2, 32)}, "keys: shape (2, 32)"),
        ({"keys": torch.zeros(2, 320, 258)}, "keys: head size 258"),
        ({"values": torch.zeros(2, 32, 320, dtype=torch.float16).mT}, "values: strides (10240, 1, 320)"),
        ({"position": torch.zeros(1, dtype=torch.int64)}, "position: torch.int64 (1,)"),
        ({"sin": torch.zeros(320, 32)}, "sin: torch.float32 (320, 32)"),
        ({"out": Activations.empty(1, 2048, "cpu")}, "out: torch.float32 (1, 2048)"),
        ({"scratch": Scratch.make((6, 3), 32, "cpu")}, "scratch: torch.float32 (3, "),
        ({"norms": (torch.ones(32), torch.ones(16))}, "norms[1]: torch.float32 (16,)"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_refusals(change, message):
    run = Run(Shape(), 3)
    names = ("keys", "values", "position", "cos", "sin", "scratch")
    arguments = {name: getattr(run, name) for name in names} | {
        "qkv": run.qkv(1), "out": Activations.empty(1, 192, DEVICE), "heads": (6, 2), "scale": 1.0, "pairs": "halves"
    }  # fmt: skip
    with pytest.raises(ValueError) as error:
        decode.decode_attention(**arguments | change)
    assert str(error.value).startswith(message)
