"""Cases for attention.   T queries, S keys, H heads, Hkv key/value heads, dh head size."""

from collections.abc import Iterator
from functools import partial
from typing import get_args

import numpy as np
import torch

from llava_ref.ops.arrays import Pairs
from llava_ref.ops.sees import Sees

from .. import reference
from .case import EPS, FLOAT16, Both, KernelCase, rand, terms


def attention(device: str) -> Iterator[KernelCase]:
    key, picture = np.arange(150), np.where((np.arange(150) >= 20) & (np.arange(150) < 140), 0, -1)
    sees = {
        "causal": Sees(key, key),
        "behind a prompt": Sees(key[93:], key),
        "window": Sees(key, key, window=40),
        "pictures": Sees(key, key, pictures=(picture, picture)),
        "all": Sees(key, key, causal=False),
    }
    for dh in 64, 72, 128, 256:
        for name, seen in sees.items():
            run = partial(_attended, seen, dh, device)
            yield KernelCase("attention.attention", f"{name}, head size {dh}", FLOAT16, run)


def _attended(sees: Sees, dh: int, device: str) -> Both:
    from ..triton.attention import AttentionPlan, attention

    T, S, scale = len(sees.query), len(sees.key), dh**-0.5
    q, k, v = (rand(n, H, dh, seed=i, device=device) for i, (n, H) in enumerate(((T, 4), (S, 2), (S, 2))))
    k, v = k.half(), v.half()
    mask = torch.zeros(T, S, dtype=torch.float64, device=device)
    mask = mask.masked_fill(torch.from_numpy(sees.hidden()).to(device), -torch.inf)
    want = reference.attention(q.double(), k.double(), v.double(), scale, mask)
    return attention(q, k, v, scale, AttentionPlan.of(sees, dh, device)), want


def decode(device: str) -> Iterator[KernelCase]:
    for heads, dh in ((4, 4), 64), ((6, 2), 128), ((4, 1), 256):
        for pairs in get_args(Pairs):
            for position, window in (0, None), (300, None), (300, 70):
                sort = f"{heads[0]} over {heads[1]} heads of {dh}, {pairs}, {position} before, window {window}"
                run = partial(_stepped, heads, dh, pairs, position, window, device)
                yield KernelCase("decode.decode_attention", sort, FLOAT16, run)


def _stepped(heads: tuple[int, int], dh: int, pairs: Pairs, position: int, window: int | None, device: str) -> Both:
    """Attend from a new token, with norms of the heads, over a cache that holds NaN from its position on."""
    from ..triton.activations import Activations
    from ..triton.decode import decode_attention
    from ..triton.slices import Scratch

    (H, Hkv), room, scale = heads, 320, dh**-0.5
    qkv, cache = rand(1, (H + 2 * Hkv) * dh, device=device), rand(2, Hkv, room, dh, seed=1, device=device).half()
    cache[:, :, position:] = torch.nan
    angle, gains = 3 * rand(room, dh // 2, seed=2, device=device), 1 + rand(2, dh, seed=3, device=device) / 4
    cos, sin, out = angle.cos(), angle.sin(), Activations.empty(1, H * dh, device)
    at, before = torch.tensor([position], dtype=torch.int32, device=device), cache.double()
    decode_attention(
        qkv, cache[0], cache[1], at, cos, sin, out, Scratch.make(heads, dh, device), heads=heads, scale=scale,
        pairs=pairs, window=window, norms=(gains[0], gains[1]), eps=EPS,
    )  # fmt: skip
    rows = qkv.double().reshape(-1, dh)
    q, k, v = rows[:H], rows[H : H + Hkv], rows[H + Hkv :]
    q, k = (reference.rms_norm(x, g, EPS)[None] for x, g in zip((q, k), gains.double(), strict=True))
    q, k = (reference.rope(x, cos[at].double(), sin[at].double(), pairs) for x in (q, k))
    first = 0 if window is None else max(0, position + 1 - window)
    keys, values = (
        torch.cat((x[:, first:position].transpose(0, 1), new)) for x, new in zip(before, (k, v[None]), strict=True)
    )
    return terms(out, H * dh), reference.attention(q, keys, values, scale, None)
