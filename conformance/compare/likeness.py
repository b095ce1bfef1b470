"""Say how a reference's array may have come from this project's, where no quirk explains why they differ.

Cheap guesses at a fault, each checked by the stage's bound: another stage, a sign, a factor, a smaller type, a bias,
rows one place on, an array turned over, rows or channels in another order. Where none fits, nothing is said.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from llava_ref.tracing.trace import ON_REQUEST

LEAST = 2e-6
"""The smallest bound: below it are differences of rounding only."""
SHOWN = 6  # numbers of an order that are written out

Arrays = Mapping[str, np.ndarray]


def likeness(name: str, ours: Arrays, theirs: Arrays, limit: float) -> str | None:
    """Return a sentence that begins with "the reference's"; None where no guess fits.

    `ours`: this project's arrays, computed from the reference's inputs; `limit`: relative RMS."""
    mine, wanted, bound = ours[name].astype(np.float64), theirs[name].astype(np.float64), max(limit, LEAST)
    if not (np.isfinite(mine).all() and np.isfinite(wanted).all() and wanted.any()):
        return None
    if (other := _another_stage(name, ours, theirs, bound)) is not None:
        return f"the reference's is {other}"
    if mine.size != wanted.size:
        return None
    for guess in (_turned_over, *(GUESSES if mine.shape == wanted.shape else ())):
        for said, made in guess(mine, wanted, ON_REQUEST in name):
            if _error(made, wanted) <= bound:
                return f"the reference's is this run's {said}"
    if mine.shape == wanted.shape and (kind := _rounded(mine, wanted)) is not None:
        return f"the reference's is this run's rounded to {kind}"
    return None


def _error(made: np.ndarray, wanted: np.ndarray) -> float:
    """Return the relative RMS."""
    return float(np.linalg.norm(made.ravel() - wanted.ravel()) / (np.linalg.norm(wanted) or 1.0))


def _another_stage(name: str, ours: Arrays, theirs: Arrays, bound: float) -> str | None:
    wanted = theirs[name]
    for other, array in ours.items():
        if other != name and array.shape == wanted.shape and _error(array, wanted) <= bound:
            back = theirs.get(other)
            exchanged = back is not None and back.shape == wanted.shape and _error(ours[name], back) <= bound
            return f"this run's {other}" + (", and that is this one: the two are exchanged" if exchanged else "")
    return None


Guesses = Iterator[tuple[str, np.ndarray]]
"""What is said, and what the reference's array then is."""


def _turned_over(mine: np.ndarray, wanted: np.ndarray, by_head: bool) -> Guesses:
    if mine.ndim == 2 and min(mine.shape) > 1:
        yield "transposed", mine.T


def _scaled(mine: np.ndarray, wanted: np.ndarray, by_head: bool) -> Guesses:
    factor = float((mine * wanted).sum() / ((mine * mine).sum() or 1.0))
    yield "with the other sign" if abs(factor + 1) < 1e-4 else f"times {factor:.6g}", factor * mine


def _biased(mine: np.ndarray, wanted: np.ndarray, by_head: bool) -> Guesses:
    if mine.ndim == 2 and len(mine) > 1:
        yield "plus the same numbers in every row: a bias left out, or one too many", mine + (wanted - mine).mean(0)


def _moved_on(mine: np.ndarray, wanted: np.ndarray, by_head: bool) -> Guesses:
    axis = 1 if by_head else 0
    for step, said in ((1, "one row later"), (-1, "one row earlier")):
        made = np.roll(mine, step, axis)
        edge = [slice(None)] * mine.ndim
        edge[axis] = slice(0, 1) if step > 0 else slice(-1, None)
        made[tuple(edge)] = wanted[tuple(edge)]  # nothing is known of the row that came in
        if mine.shape[axis] > 2:
            yield said, made


def _reordered_rows(mine: np.ndarray, wanted: np.ndarray, by_head: bool) -> Guesses:
    rows, theirs = mine.reshape(len(mine), -1), wanted.reshape(len(wanted), -1)
    order = _order(rows, theirs)
    if len(rows) > 1 and len(set(order)) == len(order):
        reverse = (order == np.arange(len(order))[::-1]).all()
        what = "heads" if by_head else "rows"
        yield f"with its {what} {'the other way round' if reverse else f'in another order: {_few(order)}'}", rows[order]


def _reordered_channels(mine: np.ndarray, wanted: np.ndarray, by_head: bool) -> Guesses:
    rows, theirs = mine.reshape(len(mine), -1), wanted.reshape(len(wanted), -1)
    order = _order(rows.T, theirs.T)
    if len(rows) > 1 and rows.shape[1] > 1 and len(set(order)) == len(order):
        yield f"with its channels in another order: {_said(order)}", rows[:, order]


def _order(mine: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return for each row of `wanted` the row of `mine` that is most like it, by two random directions."""
    directions = np.random.default_rng(0).standard_normal((mine.shape[1], 2))
    a, b = mine @ directions, wanted @ directions
    order = np.empty(len(mine), np.intp)
    order[np.lexsort(b.T[::-1])] = np.lexsort(a.T[::-1])
    return order


def _said(order: np.ndarray) -> str:
    """Describe an order of channels: of whole heads, of pairs within each head, or by its first numbers."""
    sizes = [size for size in range(len(order), 1, -1) if len(order) % size == 0]
    for size in sizes[1:]:
        blocks = order.reshape(-1, size)
        if (blocks == blocks[:, :1] + np.arange(size)).all() and not (blocks[:, 0] % size).any():
            return f"heads, or blocks of {size}: {_few(blocks[:, 0] // size)}"
    for size in (size for size in sizes if size % 2 == 0 and size > 2):
        halves = np.arange(size).reshape(2, -1).T.ravel()  # 0, size / 2, 1, ...
        first = np.arange(0, len(order), size)[:, None]
        for within, said in ((halves, "halves are adjacent pairs"), (np.argsort(halves), "adjacent pairs are halves")):
            if (order.reshape(-1, size) == first + within).all():
                return f"within every {size}, {said}, as rope has them in other files"
    return _few(order)


def _few(order: np.ndarray) -> str:
    return ", ".join(map(str, order[:SHOWN])) + (", ..." if len(order) > SHOWN else "")


def _rounded(mine: np.ndarray, wanted: np.ndarray) -> str | None:
    """Return the smaller type whose numbers all of the reference's are, near this run's."""
    single = wanted.astype(np.float32)
    with np.errstate(over="ignore"):
        half = (single.astype(np.float16).astype(np.float32) == single).all()
    if half and _error(mine, wanted) < 1e-3:
        return "float16"
    if not (single.view(np.uint32) & 0xFFFF).any() and _error(mine, wanted) < 8e-3:
        return "bfloat16"
    return None


GUESSES: tuple[Callable[[np.ndarray, np.ndarray, bool], Guesses], ...] = (
    _scaled, _biased, _moved_on, _reordered_rows, _reordered_channels,
)  # fmt: skip
