"""Keep keys and values in float16 at fixed places on the device, so that a recorded graph finds them again.

L layers, Hkv key/value heads, dh head size, S positions so far; `room` positions have a place.
"""

import weakref

import torch
from torch import Tensor

from ..kv import HeadwiseCache

FIRST_ROOM = 4096


class Slot:
    """The memory of one sequence, and the step (`stepper.SlotStep`) that was recorded over it.

    A later sequence takes both over, so neither may refer to the cache of an earlier one."""

    def __init__(self, n_layer: int, n_head_kv: int, head_size: int, device: str) -> None:
        self.shape, self._device = (n_layer, n_head_kv, head_size), device
        self.keys = self.values = self._zeros(0)  # (L, Hkv, room, dh)
        self.step: object = None

    @property
    def room(self) -> int:
        return self.keys.shape[2]

    def reserve(self, end: int, limit: int) -> None:
        """Give at least `end` positions a place, and at most `limit`; what is kept so far is kept."""
        if end <= self.room:
            return
        old, room = (self.keys, self.values), min(limit, max(FIRST_ROOM, end, 2 * self.room))
        self.keys, self.values = self._zeros(room), self._zeros(room)
        self.keys[:, :, : old[0].shape[2]], self.values[:, :, : old[1].shape[2]] = old

    def _zeros(self, room: int) -> Tensor:
        n_layer, n_head_kv, head_size = self.shape
        return torch.zeros((n_layer, n_head_kv, room, head_size), dtype=torch.float16, device=self._device)


class Slots:
    """Slots that no sequence uses. One is kept; the memory of others goes back."""

    def __init__(self, device: str) -> None:
        self._device, self._free = device, list[Slot]()

    def take(self, n_layer: int, n_head_kv: int, head_size: int) -> Slot:
        if self._free and self._free[-1].shape == (n_layer, n_head_kv, head_size):
            return self._free.pop()
        return Slot(n_layer, n_head_kv, head_size, self._device)

    def give_back(self, slot: Slot) -> None:
        self._free = [slot]


class StaticCache(HeadwiseCache):
    """A cache over a slot, which is given back when the cache is gone."""

    def __init__(self, slot: Slot, slots: Slots, limit: int) -> None:
        super().__init__(limit)
        self.slot = slot
        weakref.finalize(self, slots.give_back, slot)

    def layer(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        self.slot.reserve(end, self.limit)
        return self.slot.keys[layer], self.slot.values[layer]
