"""Filter logits before a token is drawn.   V vocabulary, k tokens of it. numpy float64; -inf where a token is out.

The stages and their order are llama.cpp's (b10605, common/sampling.cpp and src/llama-sampler.cpp): logit bias,
penalties, top-k, top-p, min-p, temperature, draw. So top-p and min-p see the probabilities at temperature 1, whatever
the temperature.
"""

import math
from collections.abc import Sequence

import numpy as np

from ..ops.step import NextLogits
from .sampling import Sampling

PENALTY_WINDOW = 64  # tokens, as llama.cpp's --repeat-last-n
FIRST = 256  # of the likeliest tokens, that are sorted first


def filtered(logits: np.ndarray, history: Sequence[int], s: Sampling) -> np.ndarray:
    """Apply every stage before the temperature.  (V,) -> (V,) float64, -inf where a token is out."""
    x = np.array(logits, np.float64)
    for token, bias in s.logit_bias.items():
        x[token] += bias
    if _penalises(s):
        x = penalised(x, history[-PENALTY_WINDOW:], s.repeat_penalty, s.frequency_penalty, s.presence_penalty)
    return keep_min_p(keep_top_p(keep_top_k(x, s.top_k), s.top_p), s.min_p)


def likeliest_wins(s: Sampling) -> bool:
    """Say whether the token is the likeliest by the logits as they are: no stage can drop it or raise another."""
    return s.temperature == 0 and s.grammar is None and not s.logit_bias and not _penalises(s)


def penalised(x: np.ndarray, history: Sequence[int], repeat: float, frequency: float, presence: float) -> np.ndarray:
    """Lower the logits (V,) of the tokens in `history`."""
    ids, counts = np.unique(np.asarray(history, np.int64), return_counts=True)
    seen = x[ids]
    out = x.copy()
    out[ids] = np.where(seen > 0, seen / repeat, seen * repeat) - counts * frequency - presence
    return out


def keep_top_k(x: np.ndarray, k: int) -> np.ndarray:
    """Keep the `k` highest of (V,), the lowest ids among equals; 0 keeps all."""
    if not 0 < k < len(x):
        return x
    least = np.partition(x, -k)[-k]
    ties = np.flatnonzero(x == least)[: k - np.count_nonzero(x > least)]
    out = np.where(x > least, x, -np.inf)
    out[ties] = least
    return out


def keep_top_p(x: np.ndarray, p: float) -> np.ndarray:
    """Keep the fewest of the likeliest tokens whose probabilities sum to at least `p`; one at least."""
    if p >= 1:
        return x
    total, k = np.exp(x - x.max()).sum(), FIRST
    while True:  # a full sort takes ten times as long as all else, and few tokens are mostly enough
        least = np.partition(x, -k)[-k] if k < len(x) else -np.inf
        ids = np.flatnonzero((x >= least) & (x > -np.inf))
        ids = ids[np.argsort(-x[ids], kind="stable")]
        cumulative = np.cumsum(np.exp(x[ids] - x[ids[0]]) / total)
        if cumulative[-1] >= p or k >= len(x):
            break
        k *= 16
    out = np.full_like(x, -np.inf)
    kept = ids[: np.searchsorted(cumulative, p, side="left") + 1]
    out[kept] = x[kept]
    return out


def keep_min_p(x: np.ndarray, p: float) -> np.ndarray:
    """Keep the tokens whose probability is at least `p` times the highest."""
    return x if p <= 0 else np.where(x >= x.max() + math.log(p), x, -np.inf)


def shortlist(logits: NextLogits, history: Sequence[int], s: Sampling) -> tuple[np.ndarray, np.ndarray] | None:
    """Apply every stage to the likeliest tokens alone, which a device brings to the host.

    -> ids (k,) in ascending order, x (k,). None where another token may be left: none of the others is above the least
    of these, and settings that only lower logits keep it so; what is left must be above it."""
    ids, least = logits.ids, float(logits.values.min())
    if s.grammar is not None or s.logit_bias or not _only_lowers(s):
        return None
    x = np.array(logits.values, np.float64)
    if _penalises(s):
        x = _penalised(ids, x, history, s)
    if s.temperature == 0:  # the likeliest outlives every stage
        x = keep_top_k(x, 1)
    elif 0 < s.top_k < len(ids):
        x = keep_top_k(x, s.top_k)
        if x[x > -np.inf].min() > least:
            x = keep_min_p(keep_top_p(x, s.top_p), s.min_p)
    elif s.top_k == 0 and s.top_p == 1:
        x = keep_min_p(x, s.min_p)
    elif s.top_k == 0 and not _penalises(s):
        x = keep_min_p(_keep_top_p(x, s.top_p, logits.total), s.min_p)
    return (ids, x) if x[x > -np.inf].min() > least else None


def _only_lowers(s: Sampling) -> bool:
    return s.repeat_penalty >= 1 and s.frequency_penalty >= 0 and s.presence_penalty >= 0


def _penalises(s: Sampling) -> bool:
    return s.repeat_penalty != 1 or s.frequency_penalty != 0 or s.presence_penalty != 0


def _penalised(ids: np.ndarray, x: np.ndarray, history: Sequence[int], s: Sampling) -> np.ndarray:
    """Lower the logits of the tokens of `history` that are among `ids`."""
    seen = np.asarray(history[-PENALTY_WINDOW:], np.int64)
    places = np.searchsorted(ids, seen[np.isin(seen, ids)])
    return penalised(x, places.tolist(), s.repeat_penalty, s.frequency_penalty, s.presence_penalty)


def _keep_top_p(x: np.ndarray, p: float, total: float) -> np.ndarray:
    """Keep the fewest of the likeliest whose probabilities reach `p`, by the total of all V; all where they do not."""
    order = np.argsort(-x, kind="stable")
    cumulative = np.cumsum(np.exp(x[order] - total))
    out = x.copy()
    out[order[np.searchsorted(cumulative, p, side="left") + 1 :]] = -np.inf
    return out
