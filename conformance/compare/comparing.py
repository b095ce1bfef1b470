"""Run a model and measure every stage against a reference's as it is computed.

T positions, N patches, D width, V vocabulary.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from llava_ref.generation.units import Part, Picture, PictureRows
from llava_ref.model import Llava
from llava_ref.ops.protocol import Array
from llava_ref.tracing.distance import Distance, bad_numbers, distance
from llava_ref.tracing.trace import ON_REQUEST, At, Probe, join, joined_shape

from .bounds import Bound


@dataclass(slots=True)
class Measured:
    """Holds what is known of a stage so far."""

    shape: tuple[int, ...] = ()
    distance: Distance | None = None
    bad: str | None = None
    """Names the sides that hold NaN or infinity, and the first row."""
    pieces: list[np.ndarray] = field(default_factory=list)


class ComparisonProbe(Probe):
    """Measures each array against the reference's of the same name.

    With `teacher_forced` the pass goes on with the reference's array: every stage is computed from the reference's
    inputs, so that distances are local errors. Otherwise they are cumulative errors."""

    def __init__(
        self, theirs: Mapping[str, np.ndarray], bound_of: Callable[[str], Bound], model: Llava, *, teacher_forced: bool
    ) -> None:
        attention = any(ON_REQUEST in name for name in theirs)
        super().__init__(["*", f"*{ON_REQUEST}"] if attention else ["*"])
        self._theirs, self._bound_of, self._ops = theirs, bound_of, model.ops
        self._teacher_forced = teacher_forced
        self.stages: dict[str, Measured] = {}

    def see(self, x: Array, at: At) -> Array:
        name, host = at.numbered, x if isinstance(x, np.ndarray) else self._ops.numpy(x)
        stage = self.stages.setdefault(name, Measured())
        stage.shape = joined_shape(name, [stage.shape, host.shape]) if stage.shape else host.shape
        if name not in self._theirs:
            return x
        want = in_axes(self._theirs[name], host.ndim)
        piece = _rows(want, at, host.shape)
        if piece is not None:
            stage.pieces.append(host.copy())
            self._measure(name, stage, want)
        if not self._teacher_forced or piece is None:
            return x
        with np.errstate(invalid="ignore"):  # a picture's bytes cannot represent NaN
            piece = piece.astype(host.dtype)
        return piece if isinstance(x, np.ndarray) else self._ops.array(piece)

    def _measure(self, name: str, stage: Measured, want: np.ndarray) -> None:
        """Measure a stage once all its rows have come. If the reference has more rows, it has another shape."""
        if joined_shape(name, [piece.shape for piece in stage.pieces]) != want.shape or not want.size:
            return
        got = join(name, stage.pieces) if len(stage.pieces) > 1 else stage.pieces[0]
        bound = self._bound_of(name)
        stage.distance = distance(got, want, bound.limit if bound.measure == "rel_rms" else 0.0)
        stage.bad, _ = bad_numbers(got, want, ("this run", "the reference"), 1 if ON_REQUEST in name else 0)
        stage.pieces.clear()


class KeepingProbe(ComparisonProbe):
    """Keeps this run's arrays of some names, each computed from the reference's inputs."""

    def __init__(self, names: Collection[str], theirs: Mapping[str, np.ndarray], model: Llava) -> None:
        super().__init__(theirs, lambda name: Bound("rel_rms", 0.0), model, teacher_forced=True)
        self._names, self._kept = names, dict[str, list[np.ndarray]]()

    def see(self, x: Array, at: At) -> Array:
        if at.numbered in self._names:
            host = x if isinstance(x, np.ndarray) else self._ops.numpy(x)
            self._kept.setdefault(at.numbered, []).append(host.copy())
        return super().see(x, at)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: join(name, pieces) for name, pieces in self._kept.items()}


def in_axes(x: np.ndarray, count: int) -> np.ndarray:
    """Return an array with `count` axes by removing or adding axes of 1, as far as that is possible."""
    while x.ndim > count and 1 in x.shape:
        x = x.squeeze(x.shape.index(1))
    return x.reshape((1,) * (count - x.ndim) + x.shape)


def _rows(want: np.ndarray, at: At, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the part of a reference's array that corresponds to ours, or None if the shapes do not fit."""
    if at.positions is not None:
        rows = slice(at.positions.start, at.positions.stop)
        want = want[:, rows, : shape[2]] if ON_REQUEST in at.name and want.ndim == 3 else want[rows]
    return want if want.shape == shape else None


def run_against(
    model: Llava, images: Sequence[object], ids: Sequence[int], theirs: Mapping[str, np.ndarray],
    bound_of: Callable[[str], Bound], *, teacher_forced: bool,
) -> tuple[dict[str, Measured], np.ndarray]:  # fmt: skip
    """Run pictures and token ids (T,), -1 at a picture's positions; return every stage measured, and logits (T, V)."""
    probe = ComparisonProbe(theirs, bound_of, model, teacher_forced=teacher_forced)
    return probe.stages, _run(model, images, ids, probe)


def kept(
    model: Llava, images: Sequence[object], ids: Sequence[int], theirs: Mapping[str, np.ndarray], names: Collection[str]
) -> dict[str, np.ndarray]:
    """Return this run's arrays of these names, each computed from the reference's inputs."""
    probe = KeepingProbe(names, theirs, model)
    _run(model, images, ids, probe)
    return probe.arrays()


def _run(model: Llava, images: Sequence[object], ids: Sequence[int], probe: Probe) -> np.ndarray:
    """Run pictures and token ids, shown to a probe; return logits (T, V)."""
    with model.probed(probe):
        rows = [model.picture_rows(image) for image in images]  # type: ignore[arg-type]
        return model.forward(parts(ids, rows))


def continued(model: Llava, images: Sequence[object], ids: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
    """Feed a prompt of pictures and token ids, then `tokens` one after the other; return the logits (n, V) that predict
    them."""
    rows = [model.picture_rows(image) for image in images]  # type: ignore[arg-type]
    return model.forward([*parts(ids, rows), list(tokens[:-1])])[len(ids) - 1 :]


def shared_ids(ours: Sequence[int], theirs: Sequence[int]) -> Sequence[int]:
    """Return the reference's token ids, or ours where its pictures have other numbers of rows."""
    return theirs if _picture_rows(ours) == _picture_rows(theirs) else ours


def _picture_rows(ids: Sequence[int]) -> list[int]:
    """Return the lengths of the runs of -1."""
    return [len(list(run)) for picture, run in groupby(ids, lambda token: token < 0) if picture]


def parts(ids: Sequence[int], pictures: Sequence[Picture]) -> list[Part]:
    """Cut token ids (T,) into the parts of a prompt; each run of -1 becomes the next rows of the pictures."""
    result: list[Part] = []
    remaining = list(pictures)
    for is_text, run in groupby(ids, lambda token: token >= 0):
        left = list(run)
        if is_text:
            result.append(left)
            continue
        while left:
            picture = remaining.pop(0)
            result.append(picture[: len(left)] if isinstance(picture, PictureRows) else picture)
            if isinstance(picture, PictureRows) and len(picture) > len(left):
                remaining.insert(0, picture[len(left) :])
            del left[: len(picture)]
    return result
