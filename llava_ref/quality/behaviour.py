"""Compare the outputs of two pairs for the same cases.

N rows of a picture, P positions scored, V vocabulary, D width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..generation.session import Session
from ..models.family import TextModel, Tower, encode
from ..tracing.distance import kl, rel_rms
from ..tracing.trace import Probe, Probes
from .cases import QualityCase


@dataclass(frozen=True, slots=True)
class PairOutput:
    """Holds the outputs of one pair for one case."""

    rows: tuple[np.ndarray, ...]  # (N, D) of each picture
    logits: np.ndarray | None  # (P, V) at the scored positions; None without a text model


@dataclass(frozen=True, slots=True)
class Difference:
    """Holds the differences of a pair's outputs from the reference's for one case."""

    cosines: np.ndarray  # of each image row, all pictures
    rows_rel_rms: float
    kl: np.ndarray  # (P,) nats
    same_top: np.ndarray  # (P,) bool: the likeliest token is the same
    in_answer: np.ndarray  # (P,) bool


@dataclass(frozen=True, slots=True)
class Spread:
    """Holds statistics of the KL over some positions, in nats."""

    n: int
    mean: float
    max: float
    typical: float
    """The square of the mean of the square roots; unlike the mean, it does not depend on a few large values alone."""
    top_1: float
    """The share of positions with the same likeliest token."""


def run(text: TextModel | None, tower: Tower | None, case: QualityCase, *probe: Probe) -> PairOutput:
    """Run a case through both halves and show it to each probe. Raises NumericsError."""
    probes = Probes(*probe)
    rows: tuple[np.ndarray, ...] = ()
    if tower is not None:
        rows = tuple(encode(tower, p.pixels, p.source, probes.tap(p)) for p in case.pictures)
    return PairOutput(rows, None if text is None else logits(text, case, rows, probes))


def logits(text: TextModel, case: QualityCase, rows: Sequence[np.ndarray], probes: Probes | None = None) -> np.ndarray:
    """Return the logits (P, V) at each position that a token follows."""
    every = Session(text, len(case.next_ids), probes).feed(case.parts(rows), all_logits=True)
    return every[case.scored]


def difference(case: QualityCase, got: PairOutput, want: PairOutput) -> Difference:
    """Measure the differences of a pair's outputs `got` from the reference's, `want`."""
    pairs = list(zip(got.rows, want.rows, strict=True))
    cosines = [_cosines(a, b) for a, b in pairs]
    none = np.zeros(0)
    if got.logits is None or want.logits is None:
        return Difference(np.concatenate([none, *cosines]), _rows_rel_rms(pairs), none, none > 0, none > 0)
    return Difference(
        cosines=np.concatenate([none, *cosines]),
        rows_rel_rms=_rows_rel_rms(pairs),
        kl=np.maximum(kl(got.logits, want.logits), 0),  # rounding of the sum may leave -1e-17
        same_top=got.logits.argmax(-1) == want.logits.argmax(-1),
        in_answer=case.in_answer,
    )


def spread(differences: Iterable[Difference], answer: bool | None = None) -> Spread | None:
    """Summarise the KL over all positions, or over those of the answers (True) or of the questions (False) alone.

    Returns None if there are no such positions."""
    masks = [(d, d.in_answer == answer if answer is not None else d.in_answer | True) for d in differences]
    values = np.concatenate([d.kl[mask] for d, mask in masks] or [np.zeros(0)])
    if not len(values):
        return None
    same = np.concatenate([d.same_top[mask] for d, mask in masks])
    typical = float(np.sqrt(values).mean() ** 2)
    return Spread(len(values), float(values.mean()), float(values.max()), typical, float(same.mean()))


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine (N,) of each row of `a` (N, D) with that of `b`; of zero rows 1 if both are zero, else 0."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    sizes = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.divide((x * y).sum(1), sizes, out=(x == y).all(1).astype(np.float64), where=sizes > 0)


def _rows_rel_rms(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the relRMS over the rows of all pictures; 0 without pictures."""
    if not pairs:
        return 0.0
    return rel_rms(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))
