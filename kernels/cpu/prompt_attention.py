"""Attend from many rows: a prompt over its cache, or a picture whose rows see one another.

T queries, S keys, H heads, Hkv key/value heads, dh head size. Where the processor multiplies tiles of bfloat16 (AMX),
that is a kernel, `tile_attention`: over a cache of float16 to 6e-6 of float64; in a picture, whose products are
bfloat16 as well, to 2.4e-3. Where it has other vectors than LLVM's plain ones it is `vector_attention`, in float32, to
5e-7. Elsewhere, and for heads of more than 256, it is torch's own attention. None holds more scores at once than those
of a block of queries.
"""

import math
import threading

import torch
from torch import Tensor

from .launch import Launch, Program, arguments
from .processor import SET, TILES
from .vector_attention import by_vectors

ROWS = 256  # queries of a block of torch's
WIDEST = 256  # numbers of a head that our kernels have room for
HALF_TERMS, FLOAT_TERMS = 2, 1
MOST_ROOM = 1 << 25  # bytes of keys and values as tiles


class TileRoom(threading.local):
    """Memory of a thread for keys and values as tiles, up to MOST_ROOM: new pages would take as long as attention."""

    def __init__(self) -> None:
        self._data = torch.empty(0, dtype=torch.bfloat16)

    def of(self, count: int) -> Tensor:
        """Return so many numbers at least."""
        if len(self._data) < count:
            self._data = torch.empty(count, dtype=torch.bfloat16)
        return self._data


_ROOM = TileRoom()


def prompt_attention(
    q: Tensor, keys: Tensor, values: Tensor, ranges: Tensor | None, scale: float, threads: int | None = None
) -> Tensor:
    """Return softmax(q k^T * scale) v.  (T, H, dh) float32, (S, Hkv, dh) (S, Hkv, dh) (T, 2) -> (T, H * dh)

    Keys and values are both float16 or both float32, and their rows may lie apart. ranges: int64, the first and the
    behind-last key that each query sees; None where all see all. Threads: as many as torch's, unless told."""
    q = q if q.stride()[1:] == (q.shape[2], 1) else q.contiguous()
    if keys.stride() != values.stride() or keys.stride(2) != 1:
        keys, values = keys.contiguous(), values.contiguous()
    threads = threads or torch.get_num_threads()
    if SET == "portable" or q.shape[2] > WIDEST:
        return by_torch(q, keys, values, ranges, scale)
    if not TILES:
        return by_vectors(q, keys, values, ranges, scale, threads)
    terms = HALF_TERMS if keys.dtype == torch.float16 else FLOAT_TERMS
    return by_tiles(q, keys, values, ranges, scale, terms, threads)


def by_torch(q: Tensor, keys: Tensor, values: Tensor, ranges: Tensor | None, scale: float) -> Tensor:
    """Attend by torch's own attention in float32, a block of queries at a time over the keys that it sees."""
    (T, H, dh), (S, Hkv, _) = q.shape, keys.shape
    out = torch.empty((T, H * dh))
    k, v = (x.transpose(0, 1).float() for x in (keys, values))
    for start in range(0, T, ROWS):
        rows, mask, first, end = q[start : start + ROWS], None, 0, S
        if ranges is not None:
            seen = ranges[start : start + ROWS]
            first, end = int(seen[:, 0].min()), int(seen[:, 1].max())
            at = torch.arange(first, end)
            mask = (at >= seen[:, :1]) & (at < seen[:, 1:])
        found = torch.nn.functional.scaled_dot_product_attention(
            rows.transpose(0, 1)[None], k[None, :, first:end], v[None, :, first:end], mask, scale=scale,
            enable_gqa=H != Hkv,
        )  # fmt: skip
        out[start : start + ROWS] = found[0].transpose(0, 1).reshape(len(rows), H * dh)
    return out


def by_tiles(
    q: Tensor, keys: Tensor, values: Tensor, ranges: Tensor | None, scale: float, terms: int, threads: int
) -> Tensor:
    """Attend by tiles, values of 1 or 2 terms; a few key/value heads at a time where they are long."""
    from .tile_attention import ROWS, attended
    from .tile_packing import packed

    (T, H, dh), (S, Hkv, _) = q.shape, keys.shape
    out = torch.empty((T, H * dh))
    chunks, steps, blocks, group = -(-dh // 32), -(-S // 32), -(-T // ROWS), H // Hkv
    head = steps * chunks * 1024  # numbers of a head
    heads = max(1, min(Hkv, MOST_ROOM // (8 * head)))
    room = _ROOM.of(4 * heads * head)
    places, term = (room.data_ptr(), room.data_ptr() + 4 * heads * head), 2 * heads * head  # bytes
    row, apart = (stride * keys.element_size() for stride in keys.stride()[:2])
    half, seen = int(keys.dtype == torch.float16), 0 if ranges is None else ranges.data_ptr()
    stages = []
    for first in range(0, Hkv, heads):
        count = min(heads, Hkv - first)
        k, v = (x.data_ptr() + apart * first for x in (keys, values))
        to_pack = arguments(k, v, row, apart, S, dh, half, steps, chunks, *places, term)
        stages.append([Launch(packed, to_pack, count * steps, 8)])
        x, y = (z.data_ptr() + 4 * first * group * dh for z in (q, out))
        to_attend = arguments(
            x, 4 * q.stride(0), y, 4 * H * dh, seen, *places, T, S, group, blocks, steps, dh, chunks, term,
            float(scale * math.log2(math.e)),
        )  # fmt: skip
        stages.append([Launch(attended(terms), to_attend, count * group * blocks, 1)])
    Program(stages, keep=(room,)).run(threads)
    return out
