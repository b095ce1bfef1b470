"""Cut a sequence into what is run at once, and run several such units in one pass as each would run by itself.

A unit is a chunk of text or a picture, or `BATCH` positions of one, so that the arithmetic of a prompt's beginning does
not depend on what comes behind it; llama.cpp decodes so too. A probe may want to see a prompt whole. But the rounding
of a product depends on how many rows it has, and attention over all rows at once takes memory by the square of their
number. So only the arrays are whole: products, activations and attention are done unit by unit, and every bit is the
one that a pass a unit would give.

T rows of the pass, S positions so far, D or K width in, N width out, H query heads, Hkv key/value heads, dh head size,
n rows of a part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import numpy as np

from ..models.looking import PictureStates
from ..ops.over import Over
from ..ops.protocol import KV, Activation, Array, Linear, Ops, Plan
from ..ops.sees import Sees

BATCH = 512  # rows run through the decoder at once: bounds the memory of the attention scores


@dataclass(frozen=True, slots=True, eq=False)
class PictureRows:
    """Rows of a picture, and their places in its grid: row by row, from number `first` on."""

    data: np.ndarray  # (n, D); `study.gradient` has the backend's array here, through which it goes
    grid: tuple[int, int] | None  # `Span.grid`; None: they have no places in one
    first: int = 0

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        grid = "" if self.grid is None else f" of a grid of {self.grid[0]} x {self.grid[1]}"
        return f"<PictureRows {list(self.data.shape)}{grid}>"

    def __getitem__(self, part: slice) -> "PictureRows":
        """Return some of the rows; they share their memory."""
        return PictureRows(self.data[part], self.grid, self.first + part.indices(len(self.data))[0])


Picture = PictureRows | PictureStates
Unit = Sequence[int] | Picture
Part = Unit | np.ndarray  # token ids, or rows (n, D) of a picture


def one_unit(part: Part) -> Unit:
    """Return a part as one unit."""
    return PictureRows(part, None) if isinstance(part, np.ndarray) else part


def positions(unit: Unit, start: int, by_grid: bool) -> tuple[np.ndarray, int]:
    """Return what rope turns a unit by that begins at position `start`, and the position of the next unit.

    They count up, (n,); or `by_grid` each is three, (n, 3): the same three for a token, and for the rows of a picture
    its first position, that plus the row, that plus the column. The next unit then begins behind the largest of them,
    and one that goes on with the same picture at its first position (M-RoPE: Wang et al. 2024,
    https://arxiv.org/abs/2409.12191, section 2.1)."""
    n = len(unit)
    if not by_grid:
        return np.arange(start, start + n), start + n
    if not isinstance(unit, PictureRows) or unit.grid is None:
        return np.arange(start, start + n)[:, None].repeat(3, 1), start + n
    (rows, columns), number = unit.grid, np.arange(unit.first, unit.first + n)
    turns = np.stack([np.zeros_like(number), number // columns, number % columns], 1)
    ended = unit.first + n == rows * columns
    return start + turns, start + (max(rows, columns) if ended else 0)


def units(parts: Sequence[Part], whole_pictures: bool) -> list[Unit]:
    """Cut `parts` into units; `whole_pictures`: the rows of a picture see one another, so that it is one unit."""
    cut: list[Unit] = []
    for part in map(one_unit, parts):
        if isinstance(part, PictureStates):
            cut.append(part)
            continue
        step = len(part) if whole_pictures and isinstance(part, PictureRows) else BATCH
        cut += [part[i : i + step] for i in range(0, len(part), step or 1)]
    return cut


def joined(units: Sequence[Unit], rows: int) -> list[list[Unit]]:
    """Put neighbouring units together while they have at most `rows` rows; a longer unit stays alone."""
    runs: list[list[Unit]] = []
    for unit in units:
        if runs and sum(map(len, runs[-1])) + len(unit) <= rows:
            runs[-1].append(unit)
        else:
            runs.append([unit])
    return runs


def ends_within(run: Sequence[Unit], rows: int) -> list[int]:
    """Return where stretches of at most `rows` end, each in one unit."""
    at, ends = 0, list[int]()
    for unit in run:
        ends += [*range(at + rows, at + len(unit), rows), at + len(unit)]
        at += len(unit)
    return ends


def equal(a: Unit, b: Unit) -> bool:
    """Say whether two units are the same, bit for bit."""
    if isinstance(a, PictureRows) and isinstance(b, PictureRows):
        return (a.grid, a.first) == (b.grid, b.first) and np.array_equal(a.data, b.data)
    if isinstance(a, PictureStates) and isinstance(b, PictureStates):
        return a.n_seen == b.n_seen and (a.data is b.data or np.array_equal(a.data, b.data))
    return not isinstance(a, Picture) and not isinstance(b, Picture) and list(a) == list(b)


def by_units(ops: Ops, first: int, ends: Sequence[int], weights: int) -> Ops:
    """Return `ops` for a pass from position `first` on, whose units end behind the rows `ends`.

    `weights`: numbers of the largest matrix, for `Ops.running`."""
    return ops if len(ends) == 1 else cast(Ops, _ByUnits(ops, first, ends, weights))


class _ByUnits(Over):
    """Operations whose rows are those of several units. What is not here treats each row by itself."""

    def __init__(self, inner: Ops, first: int, ends: Sequence[int], weights: int) -> None:
        super().__init__(inner)
        self._first, self._weights = first, weights
        self._spans = list(pairwise([0, *ends]))

    def linear(self, x: Array, w: Linear) -> Array:
        return self._joined(lambda i, start, end: self._inner.linear(x[start:end], w))

    def linears(self, x: Array, ws: Sequence[Linear]) -> tuple[Array, ...]:
        return tuple(self.linear(x, w) for w in ws)

    def activation(self, x: Array, kind: Activation) -> Array:
        """Compute each unit's: torch rounds the last numbers of an array, too few to fill a vector, in another way."""
        return self._joined(lambda i, start, end: self._inner.activation(x[start:end], kind))

    def gated(self, gate: Array, up: Array, kind: Activation) -> Array:
        return self._joined(lambda i, start, end: self._inner.gated(gate[start:end], up[start:end], kind))

    def plan(self, sees: Sees) -> list[tuple[Plan, int]]:
        """Plan each unit, with the number of keys: those up to its own end, or all, if they are not the sequence's."""
        ends = [(start, end, self._first + end if sees.causal else len(sees.key)) for start, end in self._spans]
        return [(self._inner.plan(sees.part(start, end, n)), n) for start, end, n in ends]

    def attention(self, q: Array, kv: KV, scale: float, plan: list[tuple[Plan, int]]) -> Array:
        def unit(i: int, start: int, end: int) -> Array:
            of_unit, n = plan[i]
            return self._inner.attention(q[start:end], _upto(kv, n), scale, of_unit)

        return self._joined(unit)

    def attention_weights(self, q: Array, kv: KV, scale: float, plan: list[tuple[Plan, int]]) -> Array:
        """Return (H, T, S), 0 where a unit does not reach."""
        weights = self._inner.array(np.zeros((q.shape[1], q.shape[0], kv.keys.shape[0])))
        for (of_unit, n), (start, end) in zip(plan, self._spans, strict=True):
            with self._inner.running(end - start, self._weights):
                found = self._inner.attention_weights(q[start:end], _upto(kv, n), scale, of_unit)
            weights[:, start:end, :n] = found
        return weights

    def attention_values(self, weights: Array, kv: KV) -> Array:
        """Use all positions for a unit whose weights were changed to look ahead of it."""

        def unit(i: int, start: int, end: int) -> Array:
            ahead = self._inner.numpy(weights[:, start:end, self._first + end :]).any()
            seen = kv.values.shape[0] if ahead else self._first + end
            return self._inner.attention_values(weights[:, start:end, :seen], _upto(kv, seen))

        return self._joined(unit)

    def _joined(self, unit: Callable[[int, int, int], Array]) -> Array:
        found = []
        for i, (start, end) in enumerate(self._spans):
            with self._inner.running(end - start, self._weights):
                found.append(unit(i, start, end))
        return self._inner.concat(found)


def _upto(kv: KV, n: int) -> KV:
    return replace(kv, keys=kv.keys[:n], values=kv.values[:n])
