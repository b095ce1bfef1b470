"""One demand on a server: its name, how strict it is, where it comes from, and what checks it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .target import HttpAnswer, Target

Level = Literal["must", "should", "may"]
Verdict = Literal["pass", "fail", "skip"]
REFERENCE = "OpenAI API reference, Create chat completion"
STREAMING = "OpenAI API reference, Chat completion chunk"
VISION = "OpenAI guide, Images and vision"
PYTHON = "openai-python 3.3.1"
NODE = "openai-node 6"


@dataclass(frozen=True, slots=True)
class ApiCase:
    """A demand; `check` returns if it is met, and raises `Unmet` or `Untold`."""

    name: str
    level: Level
    demand: str
    source: str
    check: Callable[[Target], None]


class Unmet(Exception):
    """The server does otherwise; the text says what came."""


class Untold(Exception):
    """The server cannot be judged by this case; the text says why."""


class DemandGroup:
    """The cases of one file: a decorator that collects them in order."""

    def __init__(self, name: str) -> None:
        self.name, self.cases = name, list[ApiCase]()

    def demand(
        self, level: Level, demand: str, source: str
    ) -> Callable[[Callable[[Target], None]], Callable[[Target], None]]:
        def keep(check: Callable[[Target], None]) -> Callable[[Target], None]:
            self.cases.append(ApiCase(f"{self.name}.{check.__name__}", level, demand, source, check))
            return check

        return keep


def need(met: bool, came: str) -> None:
    """Raise `Unmet` with what came unless the demand is met."""
    if not met:
        raise Unmet(came)


def answered(answer: HttpAnswer) -> Any:
    """Return the object of an answer that must be 200 and JSON."""
    need(answer.status == 200 and isinstance(answer.json, dict), answer.said())
    return answer.json


def refused(answer: HttpAnswer) -> Any:
    """Return the error of an answer that must be the client's fault: 5xx makes SDKs send it again."""
    need(400 <= answer.status < 500, answer.said())
    error = answer.json.get("error") if isinstance(answer.json, dict) else None
    need(isinstance(error, dict) and bool(error.get("message")), answer.said())
    return error


def choice(answer: HttpAnswer) -> Any:
    """Return the first choice of an answer."""
    choices = answered(answer).get("choices")
    need(isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict), answer.said())
    return choices[0]


def text_of(answer: HttpAnswer) -> str:
    content = (choice(answer).get("message") or {}).get("content")
    need(isinstance(content, str), answer.said())
    return str(content)


def prompt_tokens(answer: HttpAnswer) -> int:
    """Return the length of the prompt; a server that does not report it cannot be judged by it."""
    count = (answered(answer).get("usage") or {}).get("prompt_tokens")
    if not isinstance(count, int):
        raise Untold("no usage.prompt_tokens")
    return count


def seen(target: Target, content: Any, **settings: Any) -> tuple[str, tuple[float, ...]]:
    """Return what tells two prompts apart: the answer, and its log-probabilities where the server gives them."""
    answer = target.ask(content, logprobs=True, **settings)
    if answer.status != 200:
        return text_of(target.ask(content, **settings)), ()
    scored = ((choice(answer).get("logprobs") or {}).get("content")) or ()
    return text_of(answer), tuple(round(float(one["logprob"]), 3) for one in scored)


def need_difference(first: tuple[str, tuple[float, ...]], second: tuple[str, tuple[float, ...]], what: str) -> None:
    """Demand that two prompts were not the same to the model. Without log-probabilities only the text can tell."""
    if first[0] == second[0] and not first[1]:
        raise Untold(f"both answers are {first[0]!r}, and there are no log-probabilities to compare")
    need(first != second, f"{what}: the same answer {first[0]!r} with the same log-probabilities")
