"""Say how to install what a part of the program needs and the base installation lacks: the extras of pyproject.toml."""

import shlex
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Extra = Literal["server", "cluster", "conformance", "gpu", "fast", "training"]
CHECKOUT = Path(__file__).parents[1]


def missing(extra: Extra) -> str:
    """Say that an extra is missing and how to install it, as `field: problem` of an error."""
    return f"the {extra} extra is missing: {install(extra)}"


def absent(extra: Extra, modules: Iterable[str]) -> str | None:
    """Say which of an extra's modules are absent, and how to install them; None if all are there. Imports none."""
    names = [name for name in modules if find_spec(name) is None]
    return f"{missing(extra)} (there is no {', no '.join(names)})" if names else None


def install(extra: Extra) -> str:
    """Return the command that installs an extra; in a checkout, the one that keeps it editable."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        return f"pip install 'llava-ref[{extra}]'"
    here = "." if Path.cwd() == CHECKOUT else str(CHECKOUT)
    return f"pip install -e {shlex.quote(f'{here}[{extra}]')}"
