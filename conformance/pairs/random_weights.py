"""Draw random weights by name, scaled so that noise grows as in a trained model."""

import numpy as np

from .writing import StoredTensor, held


class Random:
    """Make named random float32 arrays. A name gives the same array whatever other names were asked for before."""

    def __init__(self, seed: int, gain: float) -> None:
        self._seed, self._gain = seed, gain

    def normal(self, name: str, *shape: int, std: float = 1.0, mean: float = 0.0) -> StoredTensor:
        stream = np.random.default_rng([self._seed, *name.encode()])
        return held((mean + std * stream.standard_normal(shape)).astype(np.float32))

    def matrix(self, name: str, rows: int, columns: int, gain: float = 1.0) -> StoredTensor:
        return self.normal(name, rows, columns, std=gain / columns**0.5)

    @property
    def qk(self) -> float:
        """Return the gain of query and key matrices: how sharp attention is."""
        return 1.0 + 0.6 * self._gain

    @property
    def residual(self) -> float:
        """Return the gain of a block's last matrices: how much it adds to its input."""
        return 0.35 + 0.65 * self._gain


def norm(name: str, width: int, random: Random) -> StoredTensor:
    return random.normal(name, width, std=0.1, mean=1.0)


def affine_norm(name: str, width: int, random: Random) -> dict[str, StoredTensor]:
    bias = random.normal(f"{name}.bias", width, std=0.1)
    return {f"{name}.weight": norm(name, width, random), f"{name}.bias": bias}
