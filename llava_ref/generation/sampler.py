"""Choose a token by its logits.   V vocabulary. numpy float64; a generator of its own.

The stages and their order are llama.cpp's (b10605, common/sampling.cpp and src/llama-sampler.cpp): logit bias,
penalties, top-k, top-p, min-p, temperature, draw. So top-p and min-p see the probabilities at temperature 1, whatever
the temperature. Removed tokens are -inf. The random numbers are numpy's PCG64: a seed gives other tokens in llama.cpp.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np

from ..errors import ParameterError
from .scores import Score, score

PENALTY_WINDOW = 64  # tokens, as llama.cpp's --repeat-last-n
NO_LIMIT = 2**31 - 1  # tokens
MAX_TOP = 20  # alternatives to report with a token, as OpenAI's


def _option(default: Any, low: float, high: float, does: str) -> Any:
    """Declare a setting of `Sampling`: its default, its range with both ends, and a sentence for help texts."""
    return field(default=default, metadata={"low": low, "high": high, "does": does})


class Matcher(Protocol):
    """What one answer may go on with; see `grammar`."""

    def allowed(self) -> np.ndarray: ...  # (V,) bool, one True at least

    def instead(self, token_id: int) -> int | None: ...  # another token, where this one leads too far

    def accept(self, token_id: int) -> None: ...  # the token that was chosen

    cut: bool
    """Whether `instead` gave another."""


class Grammar(Protocol):
    """A form that answers must have."""

    def start(self, limit: int) -> Matcher: ...  # of an answer of at most so many tokens


class SamplingOptions(TypedDict, total=False):
    """The settings of `Sampling` as keyword arguments of `Llava.chat` and `Llava.stream`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. The default is greedy, every other stage off. Raises ParameterError for what is out of
    range.

    The one place where these settings are declared: the command line and the server take ranges and help from here."""

    temperature: float = _option(
        0.0, 0.0, 100.0, "divide logits by it; 0, the default, takes the likeliest token, the lowest id among equals"
    )
    top_k: int = _option(0, 0, 2**31 - 1, "keep only the k most likely tokens; 0, the default, keeps all")
    top_p: float = _option(
        1.0, 0.0, 1.0, "keep only the likeliest tokens that together reach this probability; 1, the default, keeps all"
    )
    min_p: float = _option(
        0.0, 0.0, 1.0, "keep only tokens at least this likely compared with the likeliest; 0, the default, keeps all"
    )
    repeat_penalty: float = _option(
        1.0,
        0.01,
        100.0,
        "divide positive, multiply negative logits of the last 64 tokens; 1, the default, does neither",
    )
    frequency_penalty: float = _option(
        0.0, -2.0, 2.0, "subtract from a token's logit for every time it is among the last 64; default 0"
    )
    presence_penalty: float = _option(0.0, -2.0, 2.0, "subtract once if it is among the last 64; default 0")
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> number added to its logit, -100..100."""
    seed: int | None = _option(
        None, 0, 2**64 - 1, "the same seed gives the same tokens; by default a new one every time"
    )
    grammar: Grammar | None = None
    """Only tokens that it allows; the others are out before every stage."""
    top_logprobs: int | None = _option(
        None, 0, MAX_TOP, "report each token's log-probability and this many of the likeliest; by default nothing"
    )

    @classmethod
    def of(cls, **options: Unpack[SamplingOptions]) -> "Sampling":
        """Return the settings; None stands for a default."""
        return cls(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.metadata and not (value is None and setting.default is None):
                check = _check_number if isinstance(setting.default, float) else _check_integer
                check(setting.name, value, setting.metadata["low"], setting.metadata["high"])
        for token, bias in self.logit_bias.items():
            _check_integer("logit_bias", token, 0, 2**31 - 1)
            _check_number("logit_bias", bias, -100.0, 100.0)


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, int | float | np.floating) and not isinstance(value, bool) and low <= value <= high:
        return  # NaN is not
    raise ParameterError(name, repr(value), f"expected a number from {low:g} to {high:g}")


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and low <= value <= high:
        return
    raise ParameterError(name, repr(value), f"expected a whole number from {low} to {high}")


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

    def pick(self, logits: np.ndarray) -> int:
        """Choose the next token by its logits (V,), which stay as they are, and remember it."""
        if self._matcher is not None:
            logits = np.where(self._matcher.allowed(), logits, -np.inf)
        x = filtered(logits, self._history, self.sampling)
        token = int(x.argmax()) if self.sampling.temperature == 0 else self._draw(x)
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

    def score(self, logits: np.ndarray, token_id: int) -> Score | None:
        """Return the report on a token under its logits (V,) that `top_logprobs` asks for; None if it asks for none."""
        n_top = self.sampling.top_logprobs
        return None if n_top is None else score(logits, token_id, n_top)

    def _draw(self, x: np.ndarray) -> int:
        ids = np.flatnonzero(x > -np.inf)
        with np.errstate(over="ignore"):  # a tiny temperature: everything but the likeliest becomes -inf
            cumulative = np.cumsum(np.exp((x[ids] - x.max()) / self.sampling.temperature))
        at = np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right")
        return int(ids[min(at, len(ids) - 1)])


def filtered(logits: np.ndarray, history: Sequence[int], s: Sampling) -> np.ndarray:
    """Apply every stage before the temperature.  (V,) -> (V,) float64, -inf where a token is out."""
    x = np.array(logits, np.float64)
    for token, bias in s.logit_bias.items():
        x[token] += bias
    x = penalised(x, history[-PENALTY_WINDOW:], s.repeat_penalty, s.frequency_penalty, s.presence_penalty)
    return keep_min_p(keep_top_p(keep_top_k(x, s.top_k), s.top_p), s.min_p)


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
    ids = np.flatnonzero(x > -np.inf)
    ids = ids[np.argsort(-x[ids], kind="stable")]
    probabilities = np.exp(x[ids] - x[ids[0]])
    cumulative = np.cumsum(probabilities / probabilities.sum())
    out = x.copy()
    out[ids[np.searchsorted(cumulative, p, side="left") + 1 :]] = -np.inf
    return out


def keep_min_p(x: np.ndarray, p: float) -> np.ndarray:
    """Keep the tokens whose probability is at least `p` times the highest."""
    return x if p <= 0 else np.where(x >= x.max() + math.log(p), x, -np.inf)
