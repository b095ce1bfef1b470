"""Attention with many queries, against float64 with the mask drawn: every kind of mask, odd shapes, strides, sizes."""

import re
from itertools import product

import numpy as np
import pytest

pytest.importorskip("triton")
import torch

from llava_ref.kernels import reference
from llava_ref.kernels.triton.attention import AttentionPlan, attention, blocking, variants
from llava_ref.ops.sees import Sees

from ..support.helpers import close, rand
from ..support.triton_device import DEVICE

EXACT = 3e-4
"""Relative RMS error against float64 of q, k and v already rounded to float16: weights are rounded too. Largest
measured, in Triton's interpreter: 2.3e-4, with keys of which one or two count; else 1.4e-4 to 1.8e-4."""


def tensors(T, S, H, Hkv, dh):
    """Give q, keys and values, normal, rounded to float16."""
    shapes = (T, H, dh), (S, Hkv, dh), (S, Hkv, dh)
    return [torch.from_numpy(rand(*shape, seed=i)).half().to(DEVICE) for i, shape in enumerate(shapes)]


def last(T, S, causal=True, window=None, pictures=False):
    """Describe the last T of S positions; of every 60, 45 are a picture."""
    key = np.arange(S)
    numbers = np.where(key % 60 < 45, key // 60, -1)
    return Sees(key[S - T :], key, causal, window, (numbers[S - T :], numbers) if pictures else None)


def expected(q, keys, values, scale, sees):
    mask = sees.mask()
    drawn = None if mask is None else torch.from_numpy(mask)
    return reference.attention(*(x.double().cpu() for x in (q, keys, values)), scale, drawn).numpy()


def found(q, keys, values, scale, sees):
    """Run the kernel into memory of NaN, and see that it writes all of its output and nothing else."""
    T, H, dh = q.shape
    memory = torch.full((T + 2, H * dh), torch.nan, device=DEVICE)
    out = attention(q, keys, values, scale, AttentionPlan.of(sees, dh, DEVICE), memory[1:-1])
    assert out.data_ptr() == memory[1:-1].data_ptr() and memory[[0, -1]].isnan().all()
    return out.cpu().numpy()


@pytest.mark.parametrize("causal, window, pictures", [*product([True, False], [None, 1, 70], [True, False])])
def test_every_mask(causal, window, pictures):
    given = *tensors(201, 331, 2, 1, 32), 0.2, last(201, 331, causal, window, pictures)
    close(found(*given), expected(*given), EXACT)


@pytest.mark.parametrize("T, S", [(1, 1), (1, 64), (1, 65), (2, 200), (64, 64), (65, 129), (128, 128), (129, 129)])
@pytest.mark.parametrize("causal", [True, False])
def test_sizes(T, S, causal):
    given = *tensors(T, S, 1, 1, 16), 0.3, last(T, S, causal)
    close(found(*given), expected(*given), EXACT)


@pytest.mark.parametrize("dh", [8, 32, 64, 72, 80, 96, 128, 200, 256])
@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (4, 1)])
def test_head_sizes_and_groups(dh, heads):
    given = *tensors(37, 83, *heads, dh), dh**-0.5, last(37, 83, window=50)
    close(found(*given), expected(*given), EXACT)


def test_normal_float32_inputs_lose_a_thousandth_at_most():
    """Rounding q, k and v brings 1.5e-4 to 3.7e-4."""
    rows = rand(70, 2, 128, seed=7), rand(150, 2, 128, seed=8), rand(150, 2, 128, seed=9)
    given = *(torch.from_numpy(x).to(DEVICE) for x in rows), 128**-0.5, last(70, 150)
    close(found(*given), expected(*given), 1e-3)


@pytest.mark.parametrize("scale", [0.03, 3.0, 300.0])
def test_scores_of_which_one_or_two_count(scale):
    """Scores to 1.4e2, 1.4e4 and 1.4e6."""
    q, keys, values = tensors(70, 150, 1, 1, 64)
    given = 12 * q, 12 * keys, values, scale, last(70, 150)
    assert torch.einsum("thd,shd->ts", *given[:2]).abs().max() > 4400
    close(found(*given), expected(*given), EXACT)


def test_scores_that_all_stand_near_ten_thousand():
    """They differ by 1, of sums near 7.8e4 in front of the scale, where float32 steps by 0.008. Measured: 2.2e-3."""
    q, keys, values = tensors(70, 150, 1, 1, 64)
    q[..., 0] = keys[..., 0] = 280
    given = q, keys, values, 0.125, last(70, 150)
    close(found(*given), expected(*given), 4e-3)


def test_queries_far_apart_meet_tiles_that_none_of_them_sees():
    """Three queries of one block see keys 0..1, 300..302 and 598..600: the first tiles hide all from the last."""
    key = np.arange(601)
    given = *tensors(3, 601, 2, 1, 64), 0.1, Sees(key[[1, 302, 600]], key, window=3)
    close(found(*given), expected(*given), EXACT)
    given = *given[:4], Sees(key[[600, 1, 302]], key, window=3)
    close(found(*given), expected(*given), EXACT)


def test_keys_out_of_reach_are_not_read():
    q, keys, values = tensors(150, 700, 1, 1, 32)
    sees = last(150, 700, window=20)
    want = expected(q, keys, values, 0.2, sees)
    for x in (keys, values):
        x[: (700 - 150 - 19) // 64 * 64] = torch.nan
    close(found(q, keys, values, 0.2, sees), want, EXACT)


def roomy(x, room):
    """Lay keys or values out as a cache does, (Hkv, room, dh), with NaN behind the last."""
    cache = torch.full((x.shape[1], room, x.shape[2]), torch.nan, dtype=x.dtype, device=DEVICE)
    cache[:, : len(x)] = x.transpose(0, 1)
    return cache[:, : len(x)].transpose(0, 1)


@pytest.mark.parametrize("S, dtype", [(128, torch.float16), (131, torch.float16), (131, torch.float32)])
def test_strides(S, dtype):
    """Keys and values each in a cache with more room, and in none; q a part of a wider row, NaN on both sides."""
    q, keys, values = (x.to(dtype) for x in tensors(40, S, 4, 2, 72))
    wide = torch.full((40, 6, 72), torch.nan, dtype=dtype, device=DEVICE)
    wide[:, 1:5] = q
    want = expected(q, keys, values, 0.1, last(40, S))
    for k, v in ((roomy(keys, 200), roomy(values, 200)), (roomy(keys, 300), values), (keys, roomy(values, 300))):
        close(found(wide[:, 1:5], k, v, 0.1, last(40, S)), want, EXACT)


def test_out_is_made_where_none_is_given():
    q, keys, values = tensors(5, 9, 2, 1, 16)
    plan = AttentionPlan.of(last(5, 9), 16, DEVICE)
    made = attention(q, keys, values, 0.2, plan)
    assert made.dtype == torch.float32 and (made.cpu().numpy() == found(q, keys, values, 0.2, last(5, 9))).all()


FAR = torch.empty_strided((9, 2, 32), (1 << 28, 32, 1), dtype=torch.float16, device="meta")
REFUSED = {
    "head size: 20": lambda g: (
        g | {"q": g["q"][..., :20], "keys": g["keys"][..., :20], "values": g["values"][..., :20]}
    ),
    "head size: 264": lambda g: g | {name: g[name].repeat(1, 1, 9)[..., :264] for name in ("q", "keys", "values")},
    "keys: (8, 2, 32), expected (9, 2, 32)": lambda g: g | {"keys": g["keys"][:8]},
    "values: (9, 1, 32), expected (9, 2, 32)": lambda g: g | {"values": g["values"][:, :1]},
    "keys: 2 heads do not divide the 3 of q": lambda g: g | {"q": g["q"][:, :3], "out": None},
    "keys: strides (128, 64, 2)": lambda g: g | {"keys": g["keys"].repeat(1, 1, 2)[..., ::2]},
    "q: strides (132, 33, 1)": lambda g: g | {"q": g["q"].repeat(1, 1, 2)[..., :33].contiguous()[..., :32]},
    "scale: -0.1": lambda g: g | {"scale": -0.1},
    "scale: nan": lambda g: g | {"scale": float("nan")},
    "out: (4, 128), expected (5, 128)": lambda g: g | {"out": torch.empty(4, 128, device=DEVICE)},
    "out: expected contiguous float32": lambda g: g | {"out": torch.empty(5, 128, device=DEVICE).half()},
    "sees.ranges: (4, 2), expected (5, 2)": lambda g: g | {"sees": AttentionPlan.of(last(4, 9), 32, DEVICE)},
    "values: shape (9, 2, 32) spans": lambda g: g | {"values": FAR},
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_it_cannot_do_is_refused_by_name(problem):
    q, keys, values = tensors(5, 9, 4, 2, 32)
    given = {"q": q, "keys": keys, "values": values, "scale": 0.2, "sees": AttentionPlan.of(last(5, 9), 32, DEVICE)}
    with pytest.raises(ValueError, match=r"^attention: " + re.escape(problem)):
        attention(**REFUSED[problem](given))


def test_a_plan_of_another_head_size_is_refused():
    plan = AttentionPlan.of(last(130, 130), 256, DEVICE)
    with pytest.raises(ValueError, match=r"sees.reach: \(3, 2\), expected \(2, 2\)"):
        attention(*tensors(130, 130, 1, 1, 64), 0.1, plan)


def test_variants_are_what_is_launched():
    """A recorded variant has every argument of the kernel, and the blocking of its head size."""
    for variant in variants():
        cut = blocking(variant.constants["HEAD"])
        assert {*variant.types, *variant.constants} == {*variant.kernel.arg_names}
        assert (variant.constants["QUERIES"], variant.constants["KEYS"]) == cut[:2] and variant.warps == cut.warps
