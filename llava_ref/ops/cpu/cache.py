"""Keep keys and values in float16, where a kernel reads them head by head.

L layers, Hkv key/value heads, dh head size, S positions so far; `room` positions have a place.
"""

import numpy as np
import torch
from torch import Tensor

from ..arrays import KV

FIRST_ROOM = 512


class CpuCache:
    """Implement `arrays.Cache`: keys and values of a layer are (Hkv, room, dh) each; room doubles, up to `limit`."""

    def __init__(self, n_layer: int, n_head_kv: int, head_size: int, limit: int) -> None:
        self.limit, self.length = limit, 0
        self._layers = [torch.empty((2, n_head_kv, 0, head_size), dtype=torch.float16) for _ in range(n_layer)]
        self.table = np.zeros((n_layer, 3), np.int64)
        """For each layer the address of the keys and of the values, and the bytes from one head to the next."""

    def reserve(self, end: int) -> None:
        """Give at least `end` positions a place; what is kept so far is kept."""
        room = self._layers[0].shape[2]
        if end > room:
            room = min(self.limit, max(FIRST_ROOM, end, 2 * room))
            for layer in range(len(self._layers)):
                self._grow(layer, room)

    def append(self, layer: int, k: Tensor, v: Tensor) -> KV:
        end = self.length + k.shape[0]
        self.reserve(end)
        keys, values = self._layers[layer]
        keys[:, self.length : end] = k.transpose(0, 1)
        values[:, self.length : end] = v.transpose(0, 1)
        return KV(keys[:, :end].transpose(0, 1), values[:, :end].transpose(0, 1), "f16")

    def advance(self, count: int) -> None:
        self.length += count

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)

    def _grow(self, layer: int, room: int) -> None:
        old = self._layers[layer]
        new = old.new_empty((2, old.shape[1], room, old.shape[3]))
        new[:, :, : self.length] = old[:, :, : self.length]
        self._layers[layer] = new
        self.table[layer] = new[0].data_ptr(), new[1].data_ptr(), new.stride(1) * new.element_size()
