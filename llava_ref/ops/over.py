"""Base of operations that change some methods of another backend and leave the rest."""

from typing import Any

from .protocol import Ops


class Over:
    """Another backend's operations. A subclass overrides those that it changes; `cast(Ops, ...)` where it is made."""

    def __init__(self, inner: Ops) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
