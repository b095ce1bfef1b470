"""End an answer before a stop string, however the tokens cut it into pieces."""

from collections.abc import Sequence

from ..errors import ParameterError


class StopStrings:
    """Pass text on as it comes, up to the first stop string and without it."""

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise ParameterError("stop", repr(stops), "expected a list of strings that are not empty")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.met = False

    def push(self, text: str) -> str:
        """Add text and return what may be shown. The rest is held while it could be the start of a stop string."""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:  # the first to be complete, however the text was cut into pieces
            self.met = True
            return self._release(min(found)[1])
        for length in range(min(len(self._held), self._longest - 1), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return self._release(len(self._held) - length)
        return self._release(len(self._held))

    def flush(self) -> str:
        """Return what is still held when the answer ends: no stop string after all."""
        return "" if self.met else self._release(len(self._held))

    def _release(self, end: int) -> str:
        out, self._held = self._held[:end], self._held[end:]
        return out
