"""Rows appended to caches, against torch's own rounding."""

import pytest
import torch

pytest.importorskip("llvmlite")
from llava_ref.kernels.cpu.kv import append
from llava_ref.kernels.cpu.launch import run

from ...support.helpers import rand


@pytest.mark.parametrize(("T", "H", "dh"), [(1, 3, 64), (3, 2, 72), (2, 1, 7), (40, 8, 128)])
@pytest.mark.parametrize("threads", [1, 3])
def test_each_row_goes_to_its_position_of_its_cache(T: int, H: int, dh: int, threads: int) -> None:
    """Of every size that float16 knows and beyond: subnormal, too large, NaN, half way between two."""
    sizes = 10.0 ** torch.from_numpy(rand(T, H, dh, seed=2) * 4)
    k, v = torch.from_numpy(rand(T, H, dh)) * sizes, torch.from_numpy(rand(T, H, dh, seed=1))
    k[0, 0, :6] = torch.tensor([torch.nan, 65519.9, 65520.0, -1e9, 1 + 2.0**-11, 1 + 3 * 2.0**-11])
    caches = [torch.full((2, H, 20 + t, dh), 7.0, dtype=torch.float16) for t in range(T)]
    table = torch.tensor([[c[0].data_ptr(), c[1].data_ptr(), c.stride(1) * 2] for c in caches])
    at = torch.arange(T) % 20
    launch = append(*(x.data_ptr() for x in (k, v, table, at)), T, H, dh)
    run(launch, threads=threads)
    for t, cache in enumerate(caches):
        want = torch.full_like(cache, 7.0)
        want[0, :, at[t]], want[1, :, at[t]] = k[t].half(), v[t].half()
        torch.testing.assert_close(cache, want, rtol=0, atol=0, equal_nan=True)
