"""How likely the model found each token: logits -> log-probabilities.   T positions, V vocabulary.

They are the model's own, at temperature 1, before any stage of the sampler: the same token has the same number
whatever the settings. numpy float64.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..tracing.distance import log_softmax


@dataclass(frozen=True, slots=True)
class Score:
    """One token in its place."""

    token_id: int
    logprob: float
    """Natural logarithm of its probability; -inf where that is 0."""
    rank: int
    """1 for the likeliest; equals share the best place."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their log-probabilities, best first, the lower id first among equals."""


def score(logits: np.ndarray, token_id: int, n_top: int = 0) -> Score:
    """Score a token under the logits (V,) of the position before it, with the `n_top` likeliest in its place."""
    x = log_softmax(logits)
    rank = 1 + int(np.count_nonzero(x > x[token_id]))
    return Score(token_id, float(x[token_id]), rank, tuple((int(i), float(x[i])) for i in _likeliest(x, n_top)))


def _likeliest(x: np.ndarray, count: int) -> np.ndarray:
    """Return the ids of the `count` highest of (V,), in order."""
    if count <= 0:
        return np.empty(0, np.int64)
    least = np.partition(x, -count)[-count] if count < len(x) else x.min()
    ids = np.flatnonzero(x >= least)
    return ids[np.argsort(-x[ids], kind="stable")][:count]


def score_prompt(logits: Iterable[np.ndarray], token_ids: Sequence[int], n_top: int = 0) -> list[Score | None]:
    """Score every token of a prompt under the tokens before it. `logits`: (V,) of each of T positions; `token_ids`
    (T,), -1 at image positions.

    None for the first position, which has nothing before it, and for image positions, which hold no token."""
    return list(each_score(logits, token_ids, n_top))


def each_score(logits: Iterable[np.ndarray], token_ids: Sequence[int], n_top: int = 0) -> Iterator[Score | None]:
    """Yield the same, each as soon as its logits are there."""
    yield None
    for row, token_id in zip(logits, token_ids[1:], strict=False):  # nothing follows the last
        yield None if token_id < 0 else score(row, token_id, n_top)
