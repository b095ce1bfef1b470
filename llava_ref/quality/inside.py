"""Where in a pass the error comes from: each matrix at work, and each block.   T positions."""

import math
from collections.abc import Collection, Mapping

import numpy as np

from ..generation.engine import Engine
from ..gguf.file import TensorView
from ..ops.protocol import Array, Ops
from ..tracing.trace import At, Probe

TOWER_LAYERS = ("vision.pos_embd", "vision.pre_ln", "vision.blk.*.layer_out", "projector.out")
TEXT_LAYERS = ("embd", "blk.*.out", "result_output")
"""What is measured as a layer: from the output of one to the output of the next."""


class Sums:
    """Squares of errors, and of what they are errors of, by name, added up over pieces and cases."""

    def __init__(self) -> None:
        self._off: dict[str, float] = {}
        self._size: dict[str, float] = {}

    def add(self, name: str, got: np.ndarray, want: np.ndarray) -> None:
        x, y = got.astype(np.float64), want.astype(np.float64)
        self._off[name] = self._off.get(name, 0.0) + float(np.square(x - y).sum())
        self._size[name] = self._size.get(name, 0.0) + float(np.square(y).sum())

    def rel_rms(self) -> dict[str, float]:
        """||got - want|| / ||want|| over everything added, in the order first added."""
        return {name: math.sqrt(off / size) if (size := self._size[name]) else 0.0 for name, off in self._off.items()}


class Products(Probe):
    """Set on the reference's pass: every product with a matrix in `names` is done again with the other pair's matrix.

    The input of a product is the last array before it that is not a product (`kind` of stages.Stage)."""

    def __init__(
        self, reference: Engine, views: Mapping[str, TensorView], names: Collection[str], ops: Ops, sums: Sums
    ) -> None:
        """`views`: all of the other pair's tensors. `ops`: computes with them, and keeps none of them."""
        super().__init__(["*"])
        self._stages = {stage.name: stage for stage in reference.stages()}
        self._views, self._names, self._ops, self._sums = views, names, ops, sums
        self._host = reference.ops
        self._input: Array = None

    def see(self, x: Array, at: At) -> Array:
        stage = self._stages[at.name]
        if stage.kind != "matmul" or stage.weight is None:
            self._input = x
            return x
        name = self._stored(stage.weight)
        if name in self._names:
            self._sums.add(name, self._ops.numpy(self._product(name)), self._host.numpy(x))
        return x

    def _stored(self, name: str) -> str:
        """The name in the file: a tied output is the embedding, and old converters swapped two names in the tower."""
        if name not in self._views:
            return "token_embd.weight"
        shape = self._views[name].shape
        if len(shape) == 2 and shape[1] != self._input.shape[-1]:
            return name.replace("ffn_up", "ffn_down") if "ffn_up" in name else name.replace("ffn_down", "ffn_up")
        return name

    def _product(self, name: str) -> Array:
        bias = self._views.get(name.removesuffix("weight") + "bias")
        w, b = self._ops.weight(self._views[name]), None if bias is None else self._ops.weight(bias)
        product = self._ops.patches if len(self._views[name].shape) == 4 else self._ops.linear
        return product(self._input, w, b)


class Kept(Probe):
    """Set on the reference's pass: the output of each layer."""

    def __init__(self, globs: Collection[str], host: Ops) -> None:
        super().__init__(tuple(globs))
        self._host = host
        self._pieces: dict[tuple[str, int], list[np.ndarray]] = {}

    def see(self, x: Array, at: At) -> Array:
        self._pieces.setdefault((at.name, at.run), []).append(self._host.numpy(x).copy())
        return x

    def at(self, at: At) -> np.ndarray:
        """The same rows of the same layer."""
        pieces = self._pieces[at.name, at.run]
        if len(pieces) > 1:
            pieces[:] = [np.concatenate(pieces)]
        return pieces[0] if at.positions is None else pieces[0][at.positions.start : at.positions.stop]


class Layers(Probe):
    """Set on the other pair's pass: each layer's output beside the reference's.

    `forced`: the pass goes on with the reference's, so that each error is what one layer adds."""

    def __init__(self, kept: Kept, host: Ops, sums: Sums, *, forced: bool) -> None:
        super().__init__(kept.globs)
        self._kept, self._host, self._sums, self._forced = kept, host, sums, forced

    def see(self, x: Array, at: At) -> Array:
        want = self._kept.at(at)
        self._sums.add(at.name, self._host.numpy(x), want)
        return self._host.array(want) if self._forced else x
