"""Watch and change a forward pass through probes, without any change to the pass.

A forward pass calls `tap(name, x)` with every named intermediate array and goes on with the result. In an ordinary run
the tap is `no_tap`, which returns `x`. `Probes.tap` returns one that shows each array to the probes that asked for its
name: `edits.Edits` change it, a `Trace` keeps it, and any other subclass of `Probe` may observe it too. `models.stages`
lists the names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal, Protocol

import numpy as np

from ..errors import ParameterError
from ..html import table
from ..ops.protocol import Array, Ops

ON_REQUEST = "kq_soft_max"  # costs extra, so only a pattern that contains this word asks for it


HEADWISE = ("Qcur", "Kcur", "Vcur", "kqv_out")  # beginnings of the names of stages whose last axis is heads

Kind = Literal["picture", "tile", "sequence"]
"""What an array is of."""
Tap = Callable[[str, Array], Array]
"""The function that a forward pass calls with each array: `no_tap`, or the result of `Probes.tap`."""


def no_tap(name: str, x: Array) -> Array:
    """Return `x`: the tap of an ordinary run, a plain function because Python calls nothing faster."""
    return x


def scoped(tap: Tap, prefix: str, number: int | None = None) -> Tap:
    """Return the same tap with `prefix.`, or `prefix.number.`, put before every name."""
    if tap is no_tap or not isinstance(tap, _Live):
        return tap
    return tap.under(prefix if number is None else f"{prefix}.{number}")


def of_tile(tap: Tap, number: int) -> Tap:
    """Return the tap for one of a picture's tiles, counted from 0."""
    return tap.tile(number) if isinstance(tap, _Live) else tap


def wants(tap: Tap, name: str) -> bool:
    """Tell whether a probe asks for a stage that is computed only on request."""
    return tap is not no_tap and isinstance(tap, _Live) and tap.wants(name)


@dataclass(frozen=True, slots=True)
class At:
    """Holds where in a run an array was computed."""

    name: str
    positions: range | None
    """The array's rows as positions of the sequence; of keys and values of pictures that layers look at, as numbers of
    the pictures' states. None in the tower and the projector."""
    run: int
    """Index of the picture, tile or sequence since the probe was attached; each is counted by itself."""

    @property
    def numbered(self) -> str:
        """Return the name, followed by `#1`, `#2`, ... for a further picture, tile or sequence."""
        return f"{self.name}#{self.run}" if self.run else self.name


class Probe:
    """Observes the arrays whose names match one of `globs`, as in `vision.*` (a star matches dots too)."""

    complete = True
    """Whether everything must be computed for it, even results that could be reused."""
    whole = False
    """Whether it must get a prompt's rows all at once, so that its last row is the prompt's last position."""

    edits = False
    """Whether it changes arrays, so that it must see them before those that only observe."""

    def __init__(self, globs: Sequence[str]) -> None:
        self.globs = tuple(globs)
        self._wanted: dict[str, bool] = {}
        self._runs: dict[Kind, list[tuple[object, int]]] = {"picture": [], "tile": [], "sequence": []}

    def wants(self, name: str) -> bool:
        """Tell whether `see` is to be called with this array."""
        if name not in self._wanted:
            globs = self.globs if ON_REQUEST not in name else [glob for glob in self.globs if ON_REQUEST in glob]
            self._wanted[name] = any(fnmatchcase(name, glob) for glob in globs)
        return self._wanted[name]

    def see(self, x: Array, at: At) -> Array:
        """Observe an array; return the array that the pass goes on with."""
        return x

    def number(self, run: object, kind: Kind, tile: int = 0) -> int:
        """Return the index of a picture, tile or sequence: each is counted apart, in the order of its first arrays."""
        runs = self._runs[kind]
        for i, (other, number) in enumerate(runs):
            if other is run and number == tile:
                return i
        runs.append((run, tile))
        return len(runs) - 1


class Probes:
    """Holds the attached probes, in the order in which they get each array."""

    def __init__(self, *probes: Probe) -> None:
        self._set: list[Probe] = list(probes)

    def add(self, probe: Probe) -> None:
        """Attach a probe. Edits come before all others, so that a trace keeps what the pass goes on with."""
        edits = sum(other.edits for other in self._set)
        self._set.insert(edits if probe.edits else len(self._set), probe)

    def remove(self, probe: Probe) -> None:
        """Detach a probe."""
        self._set = [other for other in self._set if other is not probe]  # `!=` would compare the arrays of traces

    @contextmanager
    def attached(self, *probes: Probe) -> Iterator[None]:
        """Attach probes inside the block."""
        for probe in probes:
            self.add(probe)
        try:
            yield
        finally:
            for probe in probes:
                self.remove(probe)

    @property
    def complete(self) -> bool:
        return any(probe.complete for probe in self._set)

    @property
    def whole(self) -> bool:
        return any(probe.whole for probe in self._set)

    def tap(self, run: object, positions: range | None = None) -> Tap:
        """Return the tap for one pass. `run`: any object that stands for the picture or sequence in all its passes."""
        return _Live(tuple(self._set), run, positions, "") if self._set else no_tap


class _Live:
    """Shows the arrays of a run to probes: a tap."""

    def __init__(
        self, probes: tuple[Probe, ...], run: object, positions: range | None, prefix: str, tile: int | None = None
    ) -> None:
        self._probes, self._run, self._positions, self._prefix, self._tile = probes, run, positions, prefix, tile
        self._kind: Kind = "sequence" if positions is not None else "picture" if tile is None else "tile"

    def __call__(self, name: str, x: Array) -> Array:
        name = self._prefix + name
        for probe in self._probes:
            if probe.wants(name):
                number = probe.number(self._run, self._kind, self._tile or 0)
                x = probe.see(x, At(name, self._positions, number))
        return x

    def wants(self, name: str) -> bool:
        return any(probe.wants(self._prefix + name) for probe in self._probes)

    def under(self, prefix: str) -> "_Live":
        return _Live(self._probes, self._run, self._positions, f"{self._prefix}{prefix}.", self._tile)

    def tile(self, number: int) -> "_Live":
        return _Live(self._probes, self._run, self._positions, self._prefix, number)


class Sink(Protocol):
    """Receives the arrays of a trace."""

    def add(self, name: str, piece: np.ndarray) -> None: ...


class Trace(Probe, Mapping[str, np.ndarray]):
    """Maps names to the arrays of a run, in the order computed; numpy, on the host.

    A stage that ran several times, as the decoder does for a long prompt and for every generated token, has its rows
    joined in order. With a `sink` the arrays go there instead, and the mapping stays empty. `head_sizes`: the width of
    a head, by the beginning of the names of stages that have it."""

    def __init__(
        self, globs: Sequence[str], ops: Ops, sink: Sink | None = None, head_sizes: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(globs)
        self._ops, self._sink, self._head_sizes = ops, sink, dict(head_sizes or {})
        self._pieces: dict[str, list[np.ndarray]] = {}

    def see(self, x: Array, at: At) -> Array:
        piece = x if isinstance(x, np.ndarray) else self._ops.numpy(x)
        if self._sink is not None:
            self._sink.add(at.numbered, piece)
        else:
            self._pieces.setdefault(at.numbered, []).append(piece.copy())
        return x

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._pieces:
            near = get_close_matches(name, self._pieces, 3) or list(self._pieces)[:3]
            raise KeyError(
                f"{name!r} was not kept; of {len(self._pieces)} kept the nearest: {', '.join(near) or 'none'}"
            )
        pieces = self._pieces[name]
        if len(pieces) > 1:
            self._pieces[name] = pieces = [join(name, pieces)]
        return pieces[0]

    def heads(self, name: str) -> np.ndarray:
        """Return a stage of attention by position and head, without a copy: (T, H, dh); attention weights, (T, H, S).

        Queries and `kqv_out` have the H heads of queries, keys and values may have fewer, Hkv: query head h reads
        key/value head h // (H / Hkv). Raises ParameterError for a stage that has no heads."""
        x, stage = self[name], name.partition("#")[0].rpartition(".")[2]
        if stage == ON_REQUEST:
            return x.swapaxes(0, 1)
        sizes = [size for prefix, size in self._head_sizes.items() if name.startswith(prefix)]
        if not stage.startswith(HEADWISE) or not sizes:
            raise ParameterError("stage", name, f"has no heads, expected one of {', '.join(HEADWISE)}, {ON_REQUEST}")
        return x.reshape(len(x), -1, sizes[0])

    def __repr__(self) -> str:
        shapes = {name: joined_shape(name, [piece.shape for piece in pieces]) for name, pieces in self._pieces.items()}
        first = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:4])
        return f"<Trace of {len(shapes)} arrays{': ' if first else ''}{first}{', ...' if len(shapes) > 4 else ''}>"

    def _repr_html_(self) -> str:
        """Return a table for notebooks: each array's shape and type, and its mean, deviation, least and largest."""
        head = ("stage", "shape", "type", "mean", "deviation", "least", "largest")
        rows = []
        for name, x in self.items():
            figures = [f"{figure(x):.4g}" for figure in (np.mean, np.std, np.min, np.max)] if x.size else [""] * 4
            rows.append((name, " x ".join(map(str, x.shape)), x.dtype.name, *figures))
        return table(head, rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def join(name: str, pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Join the rows of a stage that ran in several pieces.

    Attention weights (H, T, S) have their rows on the middle axis, and S grows: keys that did not exist yet get weight
    0."""
    if ON_REQUEST not in name:
        return np.concatenate(pieces)
    width = max(piece.shape[2] for piece in pieces)
    return np.concatenate([np.pad(piece, ((0, 0), (0, 0), (0, width - piece.shape[2]))) for piece in pieces], 1)


def joined_shape(name: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of `join` for pieces of these shapes."""
    first = shapes[0]
    if ON_REQUEST not in name:
        return (sum(shape[0] for shape in shapes), *first[1:])
    return first[0], sum(shape[1] for shape in shapes), max(shape[2] for shape in shapes)
