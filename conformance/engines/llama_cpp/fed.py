"""Say what a part of a sequence is that llama.cpp decodes at once.

T positions, n rows of a picture, D decoder width, y rows and x columns of its grid.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Fed:
    """A part of a sequence: token ids (T,), or rows (n, D)."""

    values: np.ndarray
    advance: int  # by how much the text behind it moves on
    positions: np.ndarray | None = None  # of a picture's rows where rope turns by three: (4, n) time, y, x, 0

    @classmethod
    def of(cls, values: np.ndarray) -> "Fed":
        """Take an array of a job: ids (T,), rows (n, D), or rows (y, x, D) with the positions of mtmd.cpp's grid."""
        if values.ndim < 3:
            return cls(values, len(values))
        y, x = (side.ravel() for side in np.indices(values.shape[:2]))
        return cls(values.reshape(len(y), -1), max(values.shape[:2]), np.stack([0 * y, y, x, 0 * y]))
