"""Attention of a few rows over float16, against float64 of the same keys and values."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite")
from llava_ref.kernels import reference
from llava_ref.kernels.cpu.attention import attention
from llava_ref.kernels.cpu.launch import Launch, run

from ...support.helpers import close, rand

Range = tuple[int, int]


class Rows:
    """Rows that each have a cache, full of NaN where the row sees nothing."""

    def __init__(self, H: int, Hkv: int, dh: int, ranges: list[Range]) -> None:
        T, self.shape, self.scale = len(ranges), (H, Hkv, dh), dh**-0.5
        self.q, self.out = torch.from_numpy(rand(T, H, dh)), torch.full((T, H * dh), 7.0)
        room = max(end for _, end in ranges) + 1
        self.caches = [torch.from_numpy(rand(2, Hkv, room + t, dh, seed=t)).half() for t in range(T)]
        for cache, (first, end) in zip(self.caches, ranges, strict=True):
            cache[:, :, :first] = cache[:, :, end:] = torch.nan
        self.ranges = torch.tensor(ranges)

    def launch(self) -> Launch:
        self.table = torch.tensor([[c[0].data_ptr(), c[1].data_ptr(), 2 * c.stride(1)] for c in self.caches])
        addresses = (x.data_ptr() for x in (self.q, self.table, self.ranges, self.out))
        return attention(*addresses, len(self.q), *self.shape, self.scale)

    def found(self, threads: int = 1) -> Tensor:
        run(self.launch(), threads=threads)
        return self.out.clone()

    def wanted(self) -> Tensor:
        rows = []
        for q, cache, (first, end) in zip(self.q, self.caches, self.ranges.tolist(), strict=True):
            k, v = cache[:, :, first:end].double().transpose(1, 2)
            rows.append(reference.attention(q[None].double(), k, v, self.scale, None))
        return torch.cat(rows)


@pytest.mark.parametrize(("H", "Hkv", "dh"), [
    *((H, Hkv, dh) for H, Hkv in [(3, 3), (4, 2), (9, 3), (7, 1)] for dh in (64, 20)),
    *((9, 3, dh) for dh in (72, 80, 144, 256, 7)),
])  # fmt: skip
def test_rows_agree_with_float64(H: int, Hkv: int, dh: int) -> None:
    rows = Rows(H, Hkv, dh, [(0, 1), (5, 40), (0, 130), (64, 128), (3, 18)])
    close(rows.found().numpy(), rows.wanted().numpy(), 1e-6)


@pytest.mark.parametrize(("H", "Hkv", "dh"), [(4, 4, 128), (8, 2, 64), (4, 2, 80)])
@pytest.mark.parametrize("ranges", [[(0, 1409)], [(700, 3000), (0, 129)]], ids=str)
def test_long_ranges_are_the_same_in_any_number_of_threads(H: int, Hkv: int, dh: int, ranges: list[Range]) -> None:
    rows = Rows(H, Hkv, dh, ranges)
    close(rows.found().numpy(), rows.wanted().numpy(), 1e-6)
    alone = rows.found()
    for threads in 2, 3, 5:
        assert torch.equal(rows.found(threads), alone)


def test_a_row_does_not_depend_on_others() -> None:
    ranges = [(0, 700), (3, 90), (0, 1), (100, 1300)]
    together = Rows(9, 3, 64, ranges)
    found = together.found(2)
    for t, seen in enumerate(ranges):
        alone = Rows(9, 3, 64, [seen])
        alone.q, alone.caches = together.q[t : t + 1].clone(), [together.caches[t]]
        assert torch.equal(alone.found()[0], found[t])


def test_a_launch_is_used_again_with_other_ranges() -> None:
    """A recorded step: the range grows at the same address, from one part to several and back."""
    rows = Rows(4, 2, 64, [(0, 900)])
    launch = rows.launch()
    for end in 100, 900, 129, 800, 5:
        rows.ranges[0, 1] = end
        run(launch, threads=3)
        close(rows.out.numpy(), rows.wanted().numpy(), 1e-6, f"{end} keys")


def test_large_scores_do_not_overflow_and_no_number_shows() -> None:
    rows = Rows(2, 1, 64, [(0, 300)])
    rows.q *= 200
    close(rows.found().numpy(), rows.wanted().numpy(), 3e-5)  # scores of 600 are rounded by 3e-5
    rows.caches[0][0, 0, 250, 3] = torch.nan
    assert rows.found().isnan().all()
