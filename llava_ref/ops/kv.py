"""Keep keys and values of the positions already run.

S positions so far, Hkv key/value heads, dh head size; `room` positions have a place.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from .protocol import KV, Array

FIRST_ROOM = 256


class CacheLength:
    """Count the positions of a cache, of which there may be `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit, self.length, self.lag = limit, 0, 0

    def advance(self, count: int) -> None:
        self.length += count

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)


class HeadwiseCache(CacheLength, ABC):
    """Implement `arrays.Cache` in float16, one head behind another, as kernels read them."""

    @abstractmethod
    def layer(self, layer: int, end: int) -> tuple[Array, Array]:
        """Return a layer's keys and values, (Hkv, room, dh) each, with room for `end` positions."""
        ...

    def append(self, layer: int, k: Array, v: Array) -> KV:
        end = self.length + k.shape[0]
        keys, values = self.layer(layer, end)
        keys[:, self.length : end] = k.transpose(0, 1)
        values[:, self.length : end] = v.transpose(0, 1)
        return KV(keys[:, :end].transpose(0, 1), values[:, :end].transpose(0, 1), "f16")


class GrowingCache(CacheLength):
    """One pair of float32 arrays a layer, (room, Hkv, dh); room doubles as positions come, up to `limit`."""

    def __init__(
        self, n_layer: int, n_head_kv: int, head_size: int, limit: int, zeros: Callable[[tuple[int, ...]], Array]
    ) -> None:
        super().__init__(limit)
        self._row, self._zeros = (n_head_kv, head_size), zeros
        self._keys: list[Array] = [zeros((0, *self._row)) for _ in range(n_layer)]
        self._values: list[Array] = [zeros((0, *self._row)) for _ in range(n_layer)]

    def append(self, layer: int, k: Array, v: Array) -> KV:
        end = self.length + k.shape[0]
        self._keys[layer] = self._fit(self._keys[layer], end)
        self._values[layer] = self._fit(self._values[layer], end)
        self._keys[layer][self.length : end] = k
        self._values[layer][self.length : end] = v
        return KV(self._keys[layer][:end], self._values[layer][:end])

    def _fit(self, old: Array, end: int) -> Array:
        if end <= old.shape[0]:
            return old
        room = min(self.limit, max(FIRST_ROOM, end, 2 * old.shape[0]))
        new = self._zeros((room, *self._row))
        new[: self.length] = old[: self.length]
        return new
