"""A run watched beside a reference's: every stage measured as it comes.   T positions, N patches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llava_ref.generation.units import Part
from llava_ref.model import Llava
from llava_ref.ops.protocol import Array
from llava_ref.tracing.distance import Distance, bad_numbers, distance
from llava_ref.tracing.trace import ON_REQUEST, At, Probe, join, joined_shape

from .bounds import Bound


@dataclass(slots=True)
class Seen:
    """What is known of a stage so far."""

    shape: tuple[int, ...] = ()
    distance: Distance | None = None
    bad: str | None = None
    """Which side holds NaN or infinity where the other does not, or both, and at which row first."""
    pieces: list[np.ndarray] = field(default_factory=list)


class Beside(Probe):
    """Measures each array against the reference's of the same name, and, if `forced`, goes on with the reference's.

    Forced, every stage is computed from the reference's inputs, so that its distance is its own and no stage answers
    for an earlier one. Otherwise distances are those of the whole way."""

    def __init__(
        self, theirs: Mapping[str, np.ndarray], bound_of: Callable[[str], Bound], model: Llava, *, forced: bool
    ) -> None:
        attention = any(ON_REQUEST in name for name in theirs)
        super().__init__(["*", f"*{ON_REQUEST}"] if attention else ["*"])
        self._theirs, self._bound_of, self._ops, self._forced = theirs, bound_of, model.ops, forced
        self.seen: dict[str, Seen] = {}

    def see(self, x: Array, at: At) -> Array:
        name, host = at.numbered, x if isinstance(x, np.ndarray) else self._ops.numpy(x)
        seen = self.seen.setdefault(name, Seen())
        seen.shape = joined_shape(name, [seen.shape, host.shape]) if seen.shape else host.shape
        if name not in self._theirs:
            return x
        want = in_axes(self._theirs[name], host.ndim)
        piece = _rows(want, at, host.shape)
        if piece is not None:
            seen.pieces.append(host.copy())
            self._measure(name, seen, want)
        if not self._forced or piece is None:
            return x
        with np.errstate(invalid="ignore"):  # NaN has no place in a picture's bytes
            piece = piece.astype(host.dtype)
        return piece if isinstance(x, np.ndarray) else self._ops.array(piece)

    def _measure(self, name: str, seen: Seen, want: np.ndarray) -> None:
        """Once all rows are there: a longer one of theirs never is, and is of another shape."""
        pieces = joined_shape(name, [piece.shape for piece in seen.pieces])
        if pieces != want.shape or not want.size:
            return
        whole = join(name, seen.pieces) if len(seen.pieces) > 1 else seen.pieces[0]
        bound = self._bound_of(name)
        seen.distance = distance(whole, want, bound.limit if bound.measure == "rel_rms" else 0.0)
        seen.bad, _ = bad_numbers(whole, want, ("this run", "the reference"), 1 if ON_REQUEST in name else 0)
        seen.pieces.clear()


def in_axes(x: np.ndarray, count: int) -> np.ndarray:
    """An array with `count` axes, where leaving out or adding axes of 1 is enough for that; otherwise as it is."""
    while x.ndim > count and 1 in x.shape:
        x = x.squeeze(x.shape.index(1))
    return x.reshape((1,) * (count - x.ndim) + x.shape)


def _rows(want: np.ndarray, at: At, shape: tuple[int, ...]) -> np.ndarray | None:
    """The part of a reference's array that stands for ours, or None if it does not fit."""
    if at.positions is not None:
        rows = slice(at.positions.start, at.positions.stop)
        want = want[:, rows, : shape[2]] if ON_REQUEST in at.name and want.ndim == 3 else want[rows]
    return want if want.shape == shape else None


def run_beside(
    model: Llava, images: Sequence[object], ids: Sequence[int], theirs: Mapping[str, np.ndarray],
    bound_of: Callable[[str], Bound], *, forced: bool,
) -> tuple[dict[str, Seen], np.ndarray]:  # fmt: skip
    """Pictures and token ids (-1 where a picture stands) through the model: what was seen, and logits (T, V)."""
    probe = Beside(theirs, bound_of, model, forced=forced)
    with model.probed(probe):
        rows = [model.encode_image(image) for image in images]  # type: ignore[arg-type]
        logits = model.forward(parts(ids, rows))
    return probe.seen, logits


def continued(model: Llava, images: Sequence[object], ids: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
    """Logits (n, V) for each of the n `tokens` that follow a prompt of pictures and token ids, each fed in its turn."""
    rows = [model.encode_image(image) for image in images]  # type: ignore[arg-type]
    return model.forward([*parts(ids, rows), list(tokens[:-1])])[len(ids) - 1 :]


def parts(ids: Sequence[int], rows: Sequence[np.ndarray]) -> list[Part]:
    """Token ids (T,), -1 where a picture stands, with each run of those taken by the next pictures' rows."""
    result: list[Part] = []
    left, at = list(rows), 0
    while at < len(ids):
        end = at
        if ids[at] >= 0:
            while end < len(ids) and ids[end] >= 0:
                end += 1
            result.append(list(ids[at:end]))
        else:
            image = left.pop(0)
            result.append(image)
            end = at + len(image)
        at = end
    return result
