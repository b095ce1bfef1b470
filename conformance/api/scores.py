"""Log-probabilities of an answer's tokens."""

import math
from typing import Any

from .case import PYTHON, REFERENCE, DemandGroup, Untold, choice, need, text_of
from .media import ASK, image
from .target import Target

SCORES = DemandGroup("logprobs")
TYPES = f"{PYTHON}, types/chat/chat_completion_token_logprob.py"


def scored(s: Target) -> tuple[list[dict[str, Any]], str]:
    """Return the scored tokens of an answer, three alternatives each, and its text."""
    answer = s.ask([image(), ASK], logprobs=True, top_logprobs=3)
    if 400 <= answer.status < 500:
        raise Untold(f"the server refuses logprobs: {answer.said()}")
    content: list[dict[str, Any]] = (choice(answer).get("logprobs") or {}).get("content") or []
    need(isinstance(content, list) and bool(content), f"logprobs {choice(answer).get('logprobs')}")
    return content, text_of(answer)


@SCORES.demand("must", "Each token has a text, a log-probability of at most 0, bytes and top_logprobs.", TYPES)
def fields(s: Target) -> None:
    for one in scored(s)[0]:
        sound = (
            isinstance(one.get("token"), str) and isinstance(one.get("logprob"), int | float) and one["logprob"] <= 1e-6
        )
        need(sound and "bytes" in one and isinstance(one.get("top_logprobs"), list), f"{one}")


@SCORES.demand("must", "There are as many alternatives as were asked for.", f"{REFERENCE}, top_logprobs")
def alternatives(s: Target) -> None:
    counts = [len(one["top_logprobs"]) for one in scored(s)[0]]
    need(all(count == 3 for count in counts), f"{counts} alternatives")


@SCORES.demand("should", "Probabilities of alternatives do not sum to more than 1, and fall.", REFERENCE)
def probabilities(s: Target) -> None:
    for one in scored(s)[0]:
        found = [top["logprob"] for top in one["top_logprobs"]]
        need(sum(map(math.exp, found)) < 1.001 and found == sorted(found, reverse=True), f"{found}")


@SCORES.demand("should", "At temperature 0 the likeliest token is chosen.", f"{REFERENCE}, temperature")
def likeliest_first(s: Target) -> None:
    for one in scored(s)[0]:
        need(abs(one["top_logprobs"][0]["logprob"] - one["logprob"]) < 1e-3, f"{one}")


@SCORES.demand("should", "The bytes of all tokens, joined, are the answer.", f"{REFERENCE}, logprobs.content[].bytes")
def joined(s: Target) -> None:
    tokens, text = scored(s)
    if any(one.get("bytes") is None for one in tokens):
        raise Untold("bytes is null")
    found = b"".join(bytes(one["bytes"]) for one in tokens).decode("utf-8", "replace")
    need(found.strip() == text.strip(), f"{found!r}, the answer is {text!r}")


@SCORES.demand("must", "Without logprobs there are none.", f"{REFERENCE}, logprobs: default false")
def off(s: Target) -> None:
    found = choice(s.ask([image(), ASK])).get("logprobs")
    need(not found, f"{found}")
