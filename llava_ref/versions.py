"""Say which versions of this package, Python, torch and numpy run here, and on what platform. Imports none of them."""

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Return the version of each, by its name."""
    own, *others = ("llava-ref", "torch", "numpy")
    rows = {own: _version(own), "python": platform.python_version()}
    return rows | {name: _version(name) for name in others} | {"platform": platform.platform()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
