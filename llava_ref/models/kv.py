"""Keys and values of the positions already run.   S positions so far, Hkv key/value heads, dh head size."""

from ..ops.protocol import Array, Ops


class KVCache:
    """One pair of arrays a layer, (room, Hkv, dh) float32; room doubles as positions come, up to `limit`."""

    FIRST_ROOM = 256

    def __init__(self, n_layer: int, n_head_kv: int, head_size: int, limit: int, ops: Ops) -> None:
        self.limit, self.length = limit, 0
        self._row, self._ops = (n_head_kv, head_size), ops
        self._keys: list[Array] = [ops.zeros((0, *self._row)) for _ in range(n_layer)]
        self._values: list[Array] = [ops.zeros((0, *self._row)) for _ in range(n_layer)]

    def append(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Stores k and v, (T, Hkv, dh), behind the `length` positions; all of the layer's, (length + T, Hkv, dh) each.

        `length` itself moves only at `advance`, when every layer has its rows."""
        end = self.length + k.shape[0]
        self._keys[layer] = self._fit(self._keys[layer], end)
        self._values[layer] = self._fit(self._values[layer], end)
        self._keys[layer][self.length : end] = k
        self._values[layer][self.length : end] = v
        return self._keys[layer][:end], self._values[layer][:end]

    def advance(self, count: int) -> None:
        self.length += count

    def _fit(self, old: Array, end: int) -> Array:
        if end <= old.shape[0]:
            return old
        room = min(self.limit, max(self.FIRST_ROOM, end, 2 * old.shape[0]))
        new = self._ops.zeros((room, *self._row))
        new[: self.length] = old[: self.length]
        return new
