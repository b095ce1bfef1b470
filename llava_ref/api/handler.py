"""Answers as OpenAI's objects: streams of the library -> dicts. No sockets, no threads; nothing is run before `next`.

A chat's chunks come in the order that both SDKs check: for each answer the role, the text, and a chunk with the
finish reason; then, if it was asked for, the usage.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..generate import Reply, Step, Stream
from ..scores import Score
from ..tokenizer import Tokenizer

LEAST = -9999.0  # OpenAI's number for a log-probability of next to nothing; JSON has no infinity


@dataclass(frozen=True, slots=True)
class Head:
    """What all objects of one answer have in common."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str

    def fields(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def usage(replies: Sequence[Reply]) -> dict[str, Any]:
    """Of several answers to one prompt: the prompt counts once."""
    first, completion = replies[0].usage, sum(reply.usage["completion_tokens"] for reply in replies)
    return first | {"completion_tokens": completion, "total_tokens": first["prompt_tokens"] + completion}


def token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    """A token with its log-probability. Its bytes are the truth: it may be part of a character."""
    data = list(tokenizer.token_bytes(token_id))
    return {"token": tokenizer.piece(token_id), "logprob": max(logprob, LEAST), "bytes": data}


def logprobs(tokenizer: Tokenizer, steps: Sequence[Step]) -> dict[str, Any] | None:
    """Of an answer's tokens, the one that ends it left out; None where none were asked for."""
    scores = [step.score for step in steps if step.token_id not in tokenizer.end_ids]
    if all(step.score is None for step in steps):
        return None
    content = [
        token(tokenizer, s.token_id, s.logprob) | {"top_logprobs": [token(tokenizer, *pair) for pair in s.top]}
        for s in scores
        if s is not None
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(tokenizer: Tokenizer, scores: Sequence[Score | None]) -> list[dict[str, Any] | None]:
    """One entry a position, in vLLM's form; null for the first one and where a picture stands."""
    return [None if s is None else _entry(tokenizer, s) for s in scores]


def _entry(tokenizer: Tokenizer, s: Score) -> dict[str, Any]:
    ranked = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(s.top, 1)]
    return {
        str(token_id): {
            "logprob": max(logprob, LEAST),
            "rank": rank,
            "decoded_token": tokenizer.piece(token_id),
        }
        for token_id, logprob, rank in [*ranked, (s.token_id, s.logprob, s.rank)]
    }


def chat_chunks(
    streams: Sequence[Stream], head: Head, tokenizer: Tokenizer, include_usage: bool
) -> Iterator[dict[str, Any]]:
    """The answers one after the other, piece by piece."""
    common = head.fields() | ({"usage": None} if include_usage else {})
    for index, stream in enumerate(streams):
        yield common | _delta(index, {"role": "assistant", "content": "", "refusal": None})
        waiting: list[Step] = []
        for step in stream.steps():
            waiting.append(step)
            if step.text or step.finish_reason and any(s.score for s in waiting):
                yield common | _delta(index, {"content": step.text}, logprobs(tokenizer, waiting))
                waiting = []
        reply = stream.reply
        yield common | _delta(index, {}, finish=reply.finish_reason) | extras(reply)
    if include_usage:
        yield head.fields() | {"choices": [], "usage": usage([stream.reply for stream in streams])}


def _delta(
    index: int, delta: dict[str, Any], scores: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "logprobs": scores, "finish_reason": finish}]}


def extras(reply: Reply) -> dict[str, Any]:
    """What OpenAI's objects have not: how long it took, and what a reader should know about the pictures."""
    return {"timings": reply.timings} | ({"warnings": list(reply.warnings)} if reply.warnings else {})


def chat_reply(streams: Sequence[Stream], head: Head, tokenizer: Tokenizer) -> dict[str, Any]:
    """The answers in one object, when all have come."""
    choices = []
    for index, stream in enumerate(streams):
        steps = list(stream.steps())
        message = {"role": "assistant", "content": stream.reply.text, "refusal": None}
        choice = {"index": index, "message": message, "logprobs": logprobs(tokenizer, steps)}
        choices.append(choice | {"finish_reason": stream.reply.finish_reason})
    replies = [stream.reply for stream in streams]
    return head.fields() | {"choices": choices, "usage": usage(replies)} | extras(replies[0])
