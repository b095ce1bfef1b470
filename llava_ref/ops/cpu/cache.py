"""Keep keys and values in float16, where a kernel reads them head by head.

L layers, Hkv key/value heads, dh head size, S positions so far; `room` positions have a place.
"""

import numpy as np
import torch
from torch import Tensor

from ..kv import HeadwiseCache

FIRST_ROOM = 512


class CpuCache(HeadwiseCache):
    """A cache whose room doubles, up to `limit`."""

    def __init__(self, n_layer: int, n_head_kv: int, head_size: int, limit: int) -> None:
        super().__init__(limit)
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

    def layer(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        self.reserve(end)
        keys, values = self._layers[layer]
        return keys, values

    def _grow(self, layer: int, room: int) -> None:
        old = self._layers[layer]
        new = old.new_empty((2, old.shape[1], room, old.shape[3]))
        new[:, :, : self.length] = old[:, :, : self.length]
        self._layers[layer] = new
        self.table[layer] = new[0].data_ptr(), new[1].data_ptr(), new.stride(1) * new.element_size()
