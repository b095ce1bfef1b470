"""Answers of `/v1/completions`, OpenAI's older form: prompts as they stand, one choice after the other.

With `echo` the prompt comes before the answer, and with `logprobs` too each of its tokens has its log-probability:
what evaluation harnesses score with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..generation.answer import Reply, Request, Stream, usage
from ..generation.pieces import id_pieces, prompt_pieces
from ..generation.scores import Score, score_prompt
from ..model import Llava
from .handler import LEAST, Head, answer_pieces, extras

Row = tuple[str, Score | None, bool]  # what a token adds to the text, its score, and whether nothing stands before it


@dataclass(frozen=True, slots=True)
class Turn:
    """One choice: a prompt, and the answer to come (None: nothing is to be generated)."""

    request: Request
    prompt: str | list[int]
    stream: Stream | None
    echo: bool
    n_top: int | None

    @property
    def reply(self) -> Reply | None:
        return None if self.stream is None else self.stream.reply

    @property
    def completion_tokens(self) -> int:
        return 0 if self.reply is None else len(self.reply.token_ids)


def chunks(turns: Sequence[Turn], head: Head, model: Llava, include_usage: bool) -> Iterator[dict[str, Any]]:
    """Piece by piece; the last piece of each choice has its finish reason."""
    common = head.fields() | ({"usage": None} if include_usage else {})
    for index, turn in enumerate(turns):
        offset = 0
        for text, rows in _pieces(turn, model):
            scores = _table(model, rows, offset) if turn.n_top is not None else None
            yield common | _choice(index, text, scores, None)
            offset += len(text)
        yield common | _choice(index, "", None, _finish(turn)) | extras(head, turn.reply)
    if include_usage:
        yield head.fields() | {"choices": [], "usage": _usage(turns)}


def reply(turns: Sequence[Turn], head: Head, model: Llava) -> dict[str, Any]:
    """All choices in one object."""
    choices = []
    for index, turn in enumerate(turns):
        pieces = list(_pieces(turn, model))
        rows = [row for _, more in pieces for row in more]
        scores = _table(model, rows, 0) if turn.n_top is not None else None
        choices.append(_choice(index, "".join(text for text, _ in pieces), scores, _finish(turn))["choices"][0])
    return head.fields() | {"choices": choices, "usage": _usage(turns)} | extras(head, turns[0].reply)


def _choice(index: int, text: str, scores: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "logprobs": scores, "finish_reason": finish}]}


def _finish(turn: Turn) -> str | None:
    return "length" if turn.reply is None else turn.reply.finish_reason


def _pieces(turn: Turn, model: Llava) -> Iterator[tuple[str, list[Row]]]:
    """Yield the text as it comes, each time with the tokens that make it, if scores are asked for."""
    if turn.echo:
        yield turn.request.prompt.shown, _prompt_rows(model, turn)
    if turn.stream is None:
        return
    for text, pieces in answer_pieces(turn.stream, model.tokenizer):
        yield text, [(piece.text, piece.score, piece.first) for piece in pieces]


def _prompt_rows(model: Llava, turn: Turn) -> list[Row]:
    if turn.n_top is None:
        return []
    ids, prompt = turn.request.token_ids, turn.prompt
    texts = (
        prompt_pieces(model.tokenizer, prompt, ids) if isinstance(prompt, str) else id_pieces(model.tokenizer, prompt)
    )
    scores = score_prompt(model.each_logits(turn.request), ids, turn.n_top)
    return [(text, score, False) for text, score in zip(texts, scores, strict=True)]


def _table(model: Llava, rows: Sequence[Row], offset: int) -> dict[str, Any]:
    """Return OpenAI's four lists. Each token is what it adds to the text, so that joined they are the text."""
    table: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for text, score, first in rows:
        table["tokens"].append(text)
        table["token_logprobs"].append(None if score is None else max(score.logprob, LEAST))
        table["top_logprobs"].append(None if score is None else _likeliest(model, text, score, first))
        table["text_offset"].append(offset)
        offset += len(text)
    return table


def _likeliest(model: Llava, text: str, score: Score, first: bool) -> dict[str, float]:
    """Log-probabilities by text, the likeliest first, the token's own among them, under what it adds to the text."""
    others = [(_shown(model, i, first), logprob) for i, logprob in score.top if i != score.token_id]
    ranked = sorted([(text, score.logprob), *others], key=lambda pair: -pair[1])
    likeliest: dict[str, float] = {}
    for name, logprob in ranked:  # of two tokens with one text the likelier counts
        likeliest.setdefault(name, max(logprob, LEAST))
    return likeliest


def _shown(model: Llava, token_id: int, first: bool) -> str:
    """A token by itself; bytes that are no text as OpenAI writes them, `bytes:\\xe4`."""
    data = model.tokenizer.token_bytes(token_id)
    try:
        return (data.removeprefix(b" ") if first else data).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _usage(turns: Sequence[Turn]) -> dict[str, Any]:
    """A prompt of several choices counts once, with what its first choice found cached."""
    first = list({id(turn.request): turn for turn in reversed(turns)}.values())
    ids = [token for turn in first for token in turn.request.token_ids]
    cached = sum(turn.stream.clock.cached_tokens for turn in first if turn.stream is not None)
    return usage(ids, sum(turn.completion_tokens for turn in turns), cached)
