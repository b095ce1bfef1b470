"""Builds OpenAI's response objects: streams of the library -> dicts. No sockets, no threads; all iterators are lazy.

The chunks of a chat come in the order that both SDKs check: for each answer the role, the text, and a chunk with the
finish reason; then the usage, if it was requested. Between them come `Turn`s, where the work can stop for that of
other requests.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..generation.answer import Stream, Turn
from ..generation.calling import CallArguments, CallBegun, CallReader, Said
from ..generation.pieces import AnswerPieces, Piece
from ..generation.request import Reply, Request, Step
from ..generation.scores import Score, each_score
from ..generation.session import ROWS
from ..model import Llava
from ..tokenizer.tokenizer import Tokenizer
from .calling import Calling

MIN_LOGPROB = -9999.0  # OpenAI's value for "very unlikely"; JSON has no infinity


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The fields that all objects of one response share, and the request's warnings."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    warnings: tuple[str, ...] = ()
    """Parameters of the request that have no effect, one sentence each."""

    def fields(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def usage(replies: Sequence[Reply]) -> dict[str, Any]:
    """Return the token counts of several answers to one prompt, which counts once."""
    first, completion = replies[0].usage, sum(reply.usage["completion_tokens"] for reply in replies)
    return first | {"completion_tokens": completion, "total_tokens": first["prompt_tokens"] + completion}


def logprobs(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> dict[str, Any] | None:
    """Return the log-probabilities of the answer's tokens, without the end token; None if not requested.

    The tokens' texts, joined, are the answer. `bytes` are the token's own bytes, even if it ends inside a character."""
    if not pieces:
        return None
    content = []
    for piece in pieces:
        if piece.score is not None and not piece.ended:
            chosen = _token_entry(piece.text, piece.data, piece.score.logprob)
            top = [_alternative(tokenizer, piece, chosen, *pair) for pair in piece.score.top]
            content.append(chosen | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def _alternative(
    tokenizer: Tokenizer, piece: Piece, chosen: dict[str, Any], token_id: int, logprob: float
) -> dict[str, Any]:
    """Return the entry of one of the most likely tokens at the position of `piece`."""
    if token_id == piece.token_id:
        return chosen
    data = tokenizer.token_bytes(token_id)
    data = data.removeprefix(b" ") if piece.first else data
    return _token_entry(data.decode("utf-8", "replace"), data, logprob)


def _token_entry(text: str, data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, MIN_LOGPROB), "bytes": list(data)}


def prompt_scores(model: Llava, request: Request, n_top: int) -> Generator[Turn, None, list[Score | None]]:
    """Score every token of a prompt, turn by turn, as many positions each as have their logits computed at once."""
    scores: list[Score | None] = []
    for score in each_score(model.each_logits(request), request.token_ids, n_top):
        scores.append(score)
        if len(scores) % ROWS == 1:
            yield Turn.PROMPT
    return scores


def prompt_logprobs(tokenizer: Tokenizer, scores: Sequence[Score | None]) -> list[dict[str, Any] | None]:
    """Return one entry per prompt position, in vLLM's format; None for the first one and for picture positions."""
    return [None if s is None else _position_entry(tokenizer, s) for s in scores]


def _position_entry(tokenizer: Tokenizer, s: Score) -> dict[str, Any]:
    ranked = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(s.top, 1)]
    return {
        str(token_id): {
            "logprob": max(logprob, MIN_LOGPROB),
            "rank": rank,
            "decoded_token": tokenizer.piece(token_id),
        }
        for token_id, logprob, rank in [*ranked, (s.token_id, s.logprob, s.rank)]
    }


def chat_chunks(
    streams: Sequence[Stream], head: ResponseHead, tokenizer: Tokenizer, calling: Calling, include_usage: bool
) -> Iterator[dict[str, Any] | Turn]:
    """Yield the chunks of a streamed chat: all chunks of the first answer, then those of the next."""
    common = head.fields() | ({"usage": None} if include_usage else {})
    for index, stream in enumerate(streams):
        yield common | _delta(index, {"role": "assistant", "content": "", "refusal": None})
        reader = calling.reader()
        for piece in said_pieces(stream, tokenizer, reader):
            if isinstance(piece, Turn):
                yield piece
                continue
            said, pieces = piece
            yield common | _delta(index, _said_delta(said), logprobs(tokenizer, pieces))
        yield common | _delta(index, {}, finish=_finish_reason(stream, reader)) | extras(head, stream.reply)
    if include_usage:
        yield head.fields() | {"choices": [], "usage": usage([stream.reply for stream in streams])}


def empty_chunk(head: ResponseHead, include_usage: bool) -> dict[str, Any]:
    """Return a chunk of a streamed chat that adds nothing: clients that look at the text only pass over it."""
    return head.fields() | ({"usage": None} if include_usage else {}) | _delta(0, {})


def _delta(
    index: int, delta: dict[str, Any], scores: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "logprobs": scores, "finish_reason": finish}]}


def _said_delta(said: Said) -> dict[str, Any]:
    if isinstance(said, CallBegun):
        return {"tool_calls": [{"index": said.index, **_call(said.call.id, said.call.name, "")}]}
    if isinstance(said, CallArguments):
        return {"tool_calls": [{"index": said.index, "function": {"arguments": said.text}}]}
    return {"content": said}


def _call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _finish_reason(stream: Stream, reader: CallReader) -> str | None:
    """Return why an answer ended: "stop" and not "tool_calls" if a stop string cut the arguments of a call."""
    reason = stream.reply.finish_reason
    return "tool_calls" if reader.called and reason == "stop" else reason


def said_pieces(
    stream: Stream, tokenizer: Tokenizer, reader: CallReader
) -> Iterator[tuple[Said, Sequence[Piece]] | Turn]:
    """Yield an answer while it is generated: words and calls, words with their tokens as `answer_pieces`."""
    for piece in answer_pieces(stream, tokenizer):
        if isinstance(piece, Turn):
            yield piece
            continue
        said = reader.push(piece[0]) or ([""] if piece[1] else [])
        yield from ((one, piece[1]) for one in said)
        if not said:
            yield Turn.TOKEN
    yield from ((one, ()) for one in reader.flush())


def answer_pieces(stream: Stream, tokenizer: Tokenizer) -> Iterator[tuple[str, list[Piece]] | Turn]:
    """Yield an answer while it is generated: each text with its tokens, or with none if no scores were requested.

    A turn comes in front of each stretch of the prompt, and for each token that adds nothing."""
    pieces = AnswerPieces(tokenizer, at_start=not stream.request.continues)
    try:
        for turn in stream.turns():
            yield turn if isinstance(turn, Turn) else _settled(turn, pieces) or Turn.TOKEN
    finally:
        stream.close()  # here, in the thread that runs the model


def _settled(step: Step, pieces: AnswerPieces) -> tuple[str, list[Piece]] | None:
    """Return what a token adds, or None."""
    if step.score is None:
        return (step.text, []) if step.text else None
    settled = pieces.push(step)
    text = "".join(piece.text for piece in settled)
    return (text, settled) if settled or text else None


def extras(head: ResponseHead, reply: Reply | None) -> dict[str, Any]:
    """Return the fields that OpenAI's objects lack: `timings` and `warnings`."""
    warnings = [*head.warnings, *(reply.warnings if reply else ())]
    return ({"timings": reply.timings} if reply else {}) | ({"warnings": warnings} if warnings else {})


def chat_reply(
    streams: Sequence[Stream], head: ResponseHead, tokenizer: Tokenizer, calling: Calling
) -> Generator[Turn, None, dict[str, Any]]:
    """Run all streams to their end, turn by turn, and return the answers as one object."""
    choices = []
    for index, stream in enumerate(streams):
        pieces: list[Piece] = []
        reader = calling.reader()
        for piece in said_pieces(stream, tokenizer, reader):
            pieces += [] if isinstance(piece, Turn) else piece[1]
            yield piece if isinstance(piece, Turn) else Turn.TOKEN
        choice = {"index": index, "message": _message(reader), "logprobs": logprobs(tokenizer, pieces)}
        choices.append(choice | {"finish_reason": _finish_reason(stream, reader)})
    replies = [stream.reply for stream in streams]
    return head.fields() | {"choices": choices, "usage": usage(replies)} | extras(head, replies[0])


def _message(reader: CallReader) -> dict[str, Any]:
    """Return the message that an answer is; without words its content is null if it calls functions."""
    if not reader.calls:
        return {"role": "assistant", "content": reader.text, "refusal": None}
    calls = [_call(call.id, call.name, call.arguments) for call in reader.calls]
    return {"role": "assistant", "content": reader.text or None, "refusal": None, "tool_calls": calls}
