"""Put the rows of Qwen2.5-VL's tower, which llama.cpp computes window by window, back into the order of the picture.

n patches, N = n / 4 blocks of 2 x 2 patches.
"""

from dataclasses import dataclass

import numpy as np

BLOCK = 4  # patches


@dataclass(frozen=True, slots=True)
class Windows:
    """Which block each block computed is, (N,); None: the order is the picture's."""

    order: np.ndarray | None

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Return what has a row for each patch (n, ...), or for each block (N, ...), in the picture's order."""
        if self.order is None:
            return x
        blocks = x.reshape(len(self.order), -1, *x.shape[1:])
        return np.ascontiguousarray(blocks[np.argsort(self.order)].reshape(x.shape))

    def squares(self, x: np.ndarray) -> np.ndarray:
        """Return attention weights (H, n, n) in the picture's order."""
        return self.rows(self.rows(x.transpose(1, 0, 2)).transpose(2, 1, 0)).transpose(1, 2, 0)
