"""Answers as OpenAI's objects: streams of the library -> dicts. No sockets, no threads; nothing is run before `next`.

A chat's chunks come in the order that both SDKs check: for each answer the role, the text, and a chunk with the
finish reason; then, if it was asked for, the usage.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..generation.answer import Reply, Stream
from ..generation.pieces import AnswerPieces, Piece
from ..generation.scores import Score
from ..tokenizer.tokenizer import Tokenizer

LEAST = -9999.0  # OpenAI's number for a log-probability of next to nothing; JSON has no infinity


@dataclass(frozen=True, slots=True)
class Head:
    """What all objects of one answer have in common."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    warnings: tuple[str, ...] = ()
    """What the request asked for without effect."""

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


def logprobs(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> dict[str, Any] | None:
    """Return an answer's tokens with their scores, those that end it left out; None where none were asked for.

    The tokens' texts, joined, are the answer. The bytes say what a token that ends inside a character has of it."""
    if not pieces:
        return None
    content = []
    for piece in pieces:
        if piece.score is not None and not piece.ended:
            own = _token(piece.text, piece.data, piece.score.logprob)
            content.append(own | {"top_logprobs": [_likely(tokenizer, piece, own, *pair) for pair in piece.score.top]})
    return {"content": content, "refusal": None}


def _likely(tokenizer: Tokenizer, piece: Piece, own: dict[str, Any], token_id: int, logprob: float) -> dict[str, Any]:
    """What could stand in the place of `piece`."""
    if token_id == piece.token_id:
        return own
    data = tokenizer.token_bytes(token_id)
    data = data.removeprefix(b" ") if piece.first else data
    return _token(data.decode("utf-8", "replace"), data, logprob)


def _token(text: str, data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(data)}


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
        for text, pieces in answer_pieces(stream, tokenizer):
            yield common | _delta(index, {"content": text}, logprobs(tokenizer, pieces))
        reply = stream.reply
        yield common | _delta(index, {}, finish=reply.finish_reason) | extras(head, reply)
    if include_usage:
        yield head.fields() | {"choices": [], "usage": usage([stream.reply for stream in streams])}


def _delta(
    index: int, delta: dict[str, Any], scores: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "logprobs": scores, "finish_reason": finish}]}


def answer_pieces(stream: Stream, tokenizer: Tokenizer) -> Iterator[tuple[str, list[Piece]]]:
    """Yield an answer as it comes: text, and the tokens that make it where their scores were asked for."""
    pieces = AnswerPieces(tokenizer, at_start=not stream.request.continues)
    for step in stream.steps():
        if step.score is None:
            settled, text = [], step.text
        else:
            settled = pieces.push(step)
            text = "".join(piece.text for piece in settled)
        if settled or text:
            yield text, settled


def extras(head: Head, reply: Reply | None) -> dict[str, Any]:
    """What OpenAI's objects have not: how long it took, and what a reader should know."""
    warnings = [*head.warnings, *(reply.warnings if reply else ())]
    return ({"timings": reply.timings} if reply else {}) | ({"warnings": warnings} if warnings else {})


def chat_reply(streams: Sequence[Stream], head: Head, tokenizer: Tokenizer) -> dict[str, Any]:
    """The answers in one object, when all have come."""
    choices = []
    for index, stream in enumerate(streams):
        pieces = [piece for _, more in answer_pieces(stream, tokenizer) for piece in more]
        message = {"role": "assistant", "content": stream.reply.text, "refusal": None}
        choice = {"index": index, "message": message, "logprobs": logprobs(tokenizer, pieces)}
        choices.append(choice | {"finish_reason": stream.reply.finish_reason})
    replies = [stream.reply for stream in streams]
    return head.fields() | {"choices": choices, "usage": usage(replies)} | extras(head, replies[0])
