"""Find where in a pass the error arises: measure each matrix product and each layer."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ..gguf.file import TensorView
from ..models.family import TextModel, Tower
from ..ops.probe import probed
from ..ops.protocol import Array, Linear, Ops
from ..tracing.trace import At, Probe

Half = TypeVar("Half", TextModel | None, Tower | None)
TOWER_LAYERS = ("vision.pos_embd", "vision.pre_ln", "vision.blk.*.layer_out", "projector.out")
TEXT_LAYERS = ("embd", "blk.*.out", "result_output")
"""Stages at which a layer ends; a layer reaches from one of them to the next."""


class Sums:
    """Adds up squares of errors and of the reference's values, by name, over arrays and cases."""

    def __init__(self) -> None:
        self._off: dict[str, float] = {}
        self._size: dict[str, float] = {}

    def add(self, name: str, got: np.ndarray, want: np.ndarray) -> None:
        """Add an array `got` and the reference's, `want`."""
        x, y = got.astype(np.float64), want.astype(np.float64)
        self._off[name] = self._off.get(name, 0.0) + float(np.square(x - y).sum())
        self._size[name] = self._size.get(name, 0.0) + float(np.square(y).sum())

    def rel_rms(self) -> dict[str, float]:
        """Return ||got - want|| / ||want|| over everything added, by name, in the order first added."""
        return {name: math.sqrt(off / size) if (size := self._size[name]) else 0.0 for name, off in self._off.items()}


class Products:
    """Repeats every product of the reference's pass with a matrix in `names`, using the other pair's matrix."""

    def __init__(
        self, views: Mapping[str, TensorView], names: Collection[str], ops: Ops, host: Ops, sums: Sums
    ) -> None:
        """Set it up with the other pair's tensors (`views`), operations that compute with them and keep none (`ops`),
        and the reference's operations (`host`)."""
        self._views, self._names, self._ops, self._host, self._sums = views, names, ops, host, sums

    def watched(self, half: Half) -> Half:
        """Return a half of the reference whose products are repeated."""
        return half and replace(half, ops=probed(half.ops, self._again))  # type: ignore[type-var]

    def _again(self, w: Linear, x: Array, y: Array) -> None:
        name = w.weight.name
        if name not in self._names:
            return
        bias = self._views.get(name.removesuffix("weight") + "bias")
        view = replace(self._views[name], shape=w.weight.shape)
        other = Linear(self._ops.matrix(view), None if bias is None else self._ops.vector(bias))
        product = self._ops.patches if len(view.shape) == 4 else self._ops.linear
        self._sums.add(name, self._ops.numpy(product(x, other)), self._host.numpy(y))


class Kept(Probe):
    """Keeps the output of each layer of the reference's pass."""

    def __init__(self, globs: Collection[str], host: Ops) -> None:
        super().__init__(tuple(globs))
        self._host = host
        self._pieces: dict[tuple[str, int], list[np.ndarray]] = {}

    def see(self, x: Array, at: At) -> Array:
        self._pieces.setdefault((at.name, at.run), []).append(self._host.numpy(x).copy())
        return x

    def at(self, at: At) -> np.ndarray:
        """Return the same rows of the same layer."""
        pieces = self._pieces[at.name, at.run]
        if len(pieces) > 1:
            pieces[:] = [np.concatenate(pieces)]
        return pieces[0] if at.positions is None else pieces[0][at.positions.start : at.positions.stop]


class Layers(Probe):
    """Compares each layer's output in the other pair's pass with the reference's.

    With `teacher_forced` the pass goes on with the reference's output, so that each error is one layer's local error;
    otherwise errors are cumulative."""

    def __init__(self, kept: Kept, host: Ops, sums: Sums, *, teacher_forced: bool) -> None:
        super().__init__(kept.globs)
        self._kept, self._host, self._sums, self._teacher_forced = kept, host, sums, teacher_forced

    def see(self, x: Array, at: At) -> Array:
        want = self._kept.at(at)
        self._sums.add(at.name, self._host.numpy(x), want)
        return self._host.array(want) if self._teacher_forced else x
