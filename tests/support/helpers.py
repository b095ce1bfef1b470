"""What several test files share: comparison with a stated bound, seeded arrays."""

import numpy as np


def rand(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Normal numbers, the same for the same shape and seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def rel_rms(got: np.ndarray, want: np.ndarray) -> float:
    """||got - want|| / ||want||, in float64. Shapes must agree; NaN anywhere gives NaN, which fails every bound."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def close(got: np.ndarray, want: np.ndarray, bound: float, label: str = "") -> None:
    """Fails unless relRMS is at most `bound`; says where the largest difference is and both values."""
    error = rel_rms(got, want)
    worst = np.unravel_index(np.argmax(np.abs(np.asarray(got, np.float64) - want)), np.shape(want))
    where = f"worst at {tuple(map(int, worst))}: got {got[worst]!r}, expected {want[worst]!r}"
    assert error <= bound, f"{label} relRMS {error:.3g} over {bound:.3g}; {where}"
