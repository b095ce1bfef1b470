"""Declare how tokens are chosen: settings, their ranges, and the form an answer may have to have.   V vocabulary."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np

from ..chat.call_form import CallForm
from ..errors import ParameterError

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


@dataclass(frozen=True, slots=True)
class WantedFunction:
    """A function that an answer may call. `parameters`: a JSON Schema of its arguments."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WantedAnswer:
    """The form that an answer must have, as plain data: JSON, or calls of functions."""

    text: bool | dict[str, Any]
    """Whether it may be words, or the JSON Schema that it must match, where it calls nothing."""
    form: CallForm | None = None
    """How calls are written; None if there are none."""
    functions: list[WantedFunction] = field(default_factory=list)
    several: bool = False


class Grammar(Protocol):
    """A form that answers must have."""

    control: bool
    """Whether control tokens belong to it, which are a part of the answer's text then."""
    wanted: WantedAnswer
    """What it was made for."""

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

    def seeded(self) -> "Sampling":
        """Return the same with a seed, a random one if it has none and draws."""
        drawn = self.temperature != 0 and self.seed is None
        return replace(self, seed=secrets.randbits(53)) if drawn else self

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
