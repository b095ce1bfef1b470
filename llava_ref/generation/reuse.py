"""Keep for later answers rows of pictures, and the keys and values of a prompt's beginning.

Neither changes a bit of any answer. Rows are those of the same decoded pixels under the same preprocessing; keys and
values are kept for whole units of a prompt, and a unit is run by itself whether it was kept or not
(`units.units`).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from ..models.looking import PictureStates
from .session import Session
from .units import Part, PictureRows, one_unit

IMAGE_BYTES = 256 << 20


class Reuse:
    """One model's. `image_bytes`: rows kept, those used longest ago given up first; 0 keeps none. `sequences`: how many
    there are at most, those in use included; the last one is kept in any case. For one thread."""

    def __init__(self, image_bytes: int = IMAGE_BYTES, sequences: int = 1) -> None:
        self._limit, self._held = image_bytes, 0
        self._rows: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._sequences, self._n_used = sequences, 0
        self._kept: list[Session] = []  # the one used longest ago is first

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

    def take_session(self, parts: Sequence[Part] = ()) -> Session | None:
        """Return a kept sequence and forget it: it is the caller's until `give_back`.

        It is the one that has most of a prompt. Where none has half of it, or would lose more than half of its own
        positions, a sequence is to be begun (None); or the one used longest ago is given up, if there is no room."""
        best = max(self._kept, key=lambda session: session.common(parts), default=None)
        if best is not None and 2 * best.common(parts) < min(sum(map(len, parts)), best.n_past):
            best = self._kept[0] if self._n_used + len(self._kept) >= self._sequences else None
        if best is not None:
            self._kept.remove(best)
        self._n_used += 1
        return best

    def give_back(self, session: Session) -> None:
        """Keep a sequence that was taken, or begun instead, unless somebody may have changed what it holds."""
        self._n_used -= 1
        if not session.watched:
            self._kept.append(session)
        surplus = self._n_used + len(self._kept) - self._sequences
        del self._kept[: max(0, min(surplus, len(self._kept) - 1))]

    def clear(self) -> None:
        """Forget everything and free its memory."""
        self._rows.clear()
        self._kept.clear()


def cached_positions(parts: Sequence[Part], cached_rows: Sequence[np.ndarray], n_past: int) -> int:
    """Count the positions of a prompt that were not computed for it, or at least had their rows: the first `n_past`,
    and those of pictures whose rows were kept."""
    count = at = 0
    for part in map(one_unit, parts):
        kept = isinstance(part, PictureRows | PictureStates) and any(
            np.may_share_memory(part.data, rows) for rows in cached_rows
        )
        count += len(part) if kept else min(len(part), max(0, n_past - at))
        at += len(part)
    return count


def _key(rgb: np.ndarray) -> bytes:
    return hashlib.blake2b(repr(rgb.shape).encode() + np.ascontiguousarray(rgb).tobytes(), digest_size=32).digest()
