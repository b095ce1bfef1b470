"""Choose a token by its logits.   V vocabulary. numpy float64; a generator of its own.

The random numbers are numpy's PCG64: a seed gives other tokens in llama.cpp.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import ParameterError
from ..ops.step import NextLogits
from .filters import filtered, likeliest_wins, shortlist
from .sampling import Sampling
from .scores import Score, score

NO_LIMIT = 2**31 - 1  # tokens


class Sampler:
    """Picks the tokens of one answer. `history`: the prompt's token ids, which the penalties count as well. `limit`:
    tokens that the answer may have, which a grammar plans with.

    ParameterError for a logit bias of a token that a vocabulary of `n_vocab` does not have."""

    def __init__(self, sampling: Sampling, n_vocab: int, history: Sequence[int] = (), limit: int = NO_LIMIT) -> None:
        for token in sampling.logit_bias:
            if token >= n_vocab:
                raise ParameterError("logit_bias", str(token), f"no such token, expected 0 to {n_vocab - 1}")
        self.sampling = sampling
        self._rng = np.random.Generator(np.random.PCG64(sampling.seed))
        self._history = list(history)
        self._matcher = None if sampling.grammar is None else sampling.grammar.start(limit)

    def pick(self, logits: np.ndarray | NextLogits) -> int:
        """Choose the next token by its logits (V,), which stay as they are, and remember it."""
        ids, x = self._left(logits)
        token = int(ids[x.argmax() if self.sampling.temperature == 0 else self._draw(x)])
        if self._matcher is not None:
            other = self._matcher.instead(token)
            token = token if other is None else other
            self._matcher.accept(token)
        self._history.append(token)
        return token

    @property
    def cut(self) -> bool:
        """Say whether the grammar ended the answer because of its limit."""
        return self._matcher is not None and self._matcher.cut

    def score(self, logits: np.ndarray | NextLogits, token_id: int) -> Score | None:
        """Return the report on a token under its logits (V,) that `top_logprobs` asks for; None if it asks for none."""
        n_top = self.sampling.top_logprobs
        return None if n_top is None else score(np.asarray(logits), token_id, n_top)

    def _left(self, logits: np.ndarray | NextLogits) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens that are left before the temperature, and their logits: (k,) in ascending order, (k,)."""
        if not isinstance(logits, np.ndarray):
            short = shortlist(logits, self._history, self.sampling)
            if short is not None:
                return short
            logits = np.asarray(logits)
        if likeliest_wins(self.sampling):
            best = int(logits.argmax())
            return np.array([best]), logits[best : best + 1]
        if self._matcher is not None:
            logits = np.where(self._matcher.allowed()[: len(logits)], logits, -np.inf)  # tokens that can be said
        return np.arange(len(logits)), filtered(logits, self._history, self.sampling)

    def _draw(self, x: np.ndarray) -> int:
        ids = np.flatnonzero(x > -np.inf)
        with np.errstate(over="ignore"):  # a tiny temperature: everything but the likeliest becomes -inf
            cumulative = np.cumsum(np.exp((x[ids] - x.max()) / self.sampling.temperature))
        at = np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right")
        return int(ids[min(at, len(ids) - 1)])
