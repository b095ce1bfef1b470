"""Builds the responses of `/v1/completions`, OpenAI's legacy API: raw prompts, answered one choice after the other.

With `echo` the prompt comes before the answer. With `echo` and `logprobs`, every prompt token has its log-probability
too; evaluation harnesses score with that.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..generation.answer import Stream, Turn
from ..generation.pieces import id_pieces, prompt_pieces
from ..generation.request import Reply, Request, usage
from ..generation.scores import Score
from ..model import Llava
from .handler import MIN_LOGPROB, ResponseHead, answer_pieces, extras, prompt_scores

TokenRow = tuple[str, Score | None, bool]  # the text that a token adds, its score, whether it begins the whole text


@dataclass(frozen=True, slots=True)
class CompletionChoice:
    """A prompt and the stream of its answer; `stream` is None if no token is to be generated."""

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


def chunks(
    choices: Sequence[CompletionChoice], head: ResponseHead, model: Llava, include_usage: bool
) -> Iterator[dict[str, Any] | Turn]:
    """Yield the chunks of a streamed completion; the last chunk of each choice has its finish reason."""
    common = head.fields() | ({"usage": None} if include_usage else {})
    for index, choice in enumerate(choices):
        offset = 0
        for piece in _pieces(choice, model):
            if isinstance(piece, Turn):
                yield piece
                continue
            text, rows = piece
            scores = _logprobs(model, rows, offset) if choice.n_top is not None else None
            yield common | _chunk(index, text, scores, None)
            offset += len(text)
        yield common | _chunk(index, "", None, _finish_reason(choice)) | extras(head, choice.reply)
    if include_usage:
        yield head.fields() | {"choices": [], "usage": _usage(choices)}


def reply(
    choices: Sequence[CompletionChoice], head: ResponseHead, model: Llava
) -> Generator[Turn, None, dict[str, Any]]:
    """Run all choices, turn by turn, and return the whole completion as one object."""
    answers = []
    for index, choice in enumerate(choices):
        pieces: list[tuple[str, list[TokenRow]]] = []
        for piece in _pieces(choice, model):
            pieces += [] if isinstance(piece, Turn) else [piece]
            yield piece if isinstance(piece, Turn) else Turn.TOKEN
        rows = [row for _, more in pieces for row in more]
        scores = _logprobs(model, rows, 0) if choice.n_top is not None else None
        text = "".join(text for text, _ in pieces)
        answers.append(_chunk(index, text, scores, _finish_reason(choice))["choices"][0])
    return head.fields() | {"choices": answers, "usage": _usage(choices)} | extras(head, choices[0].reply)


def _chunk(index: int, text: str, scores: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "logprobs": scores, "finish_reason": finish}]}


def _finish_reason(choice: CompletionChoice) -> str | None:
    return "length" if choice.reply is None else choice.reply.finish_reason


def _pieces(choice: CompletionChoice, model: Llava) -> Iterator[tuple[str, list[TokenRow]] | Turn]:
    """Yield the text piece by piece, each with its tokens; the list is empty if no scores were requested."""
    if choice.echo:
        rows = yield from _prompt_rows(model, choice)
        yield choice.request.prompt.shown, rows
    if choice.stream is None:
        return
    for piece in answer_pieces(choice.stream, model.tokenizer):
        if isinstance(piece, Turn):
            yield piece
            continue
        text, pieces = piece
        yield text, [(one.text, one.score, one.first) for one in pieces]


def _prompt_rows(model: Llava, choice: CompletionChoice) -> Generator[Turn, None, list[TokenRow]]:
    if choice.n_top is None:
        return []
    ids, prompt = choice.request.token_ids, choice.prompt
    texts = (
        prompt_pieces(model.tokenizer, prompt, ids) if isinstance(prompt, str) else id_pieces(model.tokenizer, prompt)
    )
    scores = yield from prompt_scores(model, choice.request, choice.n_top)
    return [(text, score, False) for text, score in zip(texts, scores, strict=True)]


def _logprobs(model: Llava, rows: Sequence[TokenRow], offset: int) -> dict[str, Any]:
    """Return OpenAI's four lists. A token is the text that it adds, so that the tokens, joined, are the text."""
    table: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for text, score, first in rows:
        table["tokens"].append(text)
        table["token_logprobs"].append(None if score is None else max(score.logprob, MIN_LOGPROB))
        table["top_logprobs"].append(None if score is None else _top_logprobs(model, text, score, first))
        table["text_offset"].append(offset)
        offset += len(text)
    return table


def _top_logprobs(model: Llava, text: str, score: Score, first: bool) -> dict[str, float]:
    """Map token texts to log-probabilities, most likely first. The chosen token is included under the text it adds."""
    others = [(_label(model, i, first), logprob) for i, logprob in score.top if i != score.token_id]
    ranked = sorted([(text, score.logprob), *others], key=lambda pair: -pair[1])
    top: dict[str, float] = {}
    for name, logprob in ranked:  # if two tokens have the same text, the more likely one is kept
        top.setdefault(name, max(logprob, MIN_LOGPROB))
    return top


def _label(model: Llava, token_id: int, first: bool) -> str:
    """Return a token's own text; for bytes that are not valid UTF-8, OpenAI's notation `bytes:\\xe4`."""
    data = model.tokenizer.token_bytes(token_id)
    try:
        return (data.removeprefix(b" ") if first else data).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _usage(choices: Sequence[CompletionChoice]) -> dict[str, Any]:
    """Count tokens. A prompt with several choices counts once, with the cached tokens of its first choice."""
    first = list({id(choice.request): choice for choice in reversed(choices)}.values())
    ids = [token for choice in first for token in choice.request.token_ids]
    cached = sum(choice.stream.clock.cached_tokens for choice in first if choice.stream is not None)
    return usage(ids, sum(choice.completion_tokens for choice in choices), cached)
