"""Keep for the next answer rows of pictures, and the keys and values of a prompt's beginning.

Neither changes a bit of any answer. Rows are those of the same decoded pixels under the same preprocessing; keys and
values are kept for whole units of a prompt, and a unit is run by itself whether it was kept or not
(`units.units`).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from .session import Session
from .units import Part

IMAGE_BYTES = 256 << 20


class Reuse:
    """One model's. `image_bytes`: rows kept, those used longest ago given up first; 0 keeps none.

    Of sequences the last one is kept. For one thread at a time."""

    def __init__(self, image_bytes: int = IMAGE_BYTES) -> None:
        self._limit, self._held = image_bytes, 0
        self._rows: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._session: Session | None = None

    def rows(self, rgb: np.ndarray) -> np.ndarray | None:
        """Return the rows (N, D) that these pixels (height, width, 3) had the last time, or None."""
        key = _key(rgb)
        if key in self._rows:
            self._rows.move_to_end(key)
        return self._rows.get(key)

    def keep_rows(self, rgb: np.ndarray, rows: np.ndarray) -> None:
        rows.flags.writeable = False
        self._rows[_key(rgb)] = rows
        self._held = sum(kept.nbytes for kept in self._rows.values())
        while self._held > self._limit:
            self._held -= self._rows.popitem(last=False)[1].nbytes

    def take_session(self) -> Session | None:
        """Return the last sequence and forget it: it is the caller's from now on."""
        session, self._session = self._session, None
        return session

    def keep_session(self, session: Session) -> None:
        self._session = session

    def clear(self) -> None:
        """Forget everything and free its memory."""
        self._rows.clear()
        self._session = None


def cached_positions(parts: Sequence[Part], cached_rows: Sequence[np.ndarray], n_past: int) -> int:
    """Count the positions of a prompt that were not computed for it, or at least had their rows: the first `n_past`,
    and those of pictures whose rows were kept."""
    count = at = 0
    for part in parts:
        kept = any(part is rows for rows in cached_rows)
        count += len(part) if kept else min(len(part), max(0, n_past - at))
        at += len(part)
    return count


def _key(rgb: np.ndarray) -> bytes:
    return hashlib.blake2b(repr(rgb.shape).encode() + np.ascontiguousarray(rgb).tobytes(), digest_size=32).digest()
