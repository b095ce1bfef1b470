"""Answers of `/v1/completions`, OpenAI's older form: prompts as they stand, one choice after the other.

With `echo` the prompt comes before the answer, and with `logprobs` too each of its tokens has its log-probability:
what evaluation harnesses score with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..generate import Request, Stream, usage
from ..model import Llava
from ..scores import Score, score_prompt
from .handler import LEAST, Head, extras


@dataclass(frozen=True, slots=True)
class Turn:
    """One choice: a prompt, and the answer to come (None: nothing is to be generated)."""

    request: Request
    stream: Stream | None
    echo: bool
    n_top: int | None

    @property
    def completion_tokens(self) -> int:
        return len(self.stream.reply.token_ids) if self.stream is not None else 0


def chunks(turns: Sequence[Turn], head: Head, model: Llava, include_usage: bool) -> Iterator[dict[str, Any]]:
    """Piece by piece; the last piece of each choice has its finish reason."""
    common = head.fields() | ({"usage": None} if include_usage else {})
    for index, turn in enumerate(turns):
        so_far = len(turn.request.prompt.shown) if turn.echo else 0
        if turn.echo:
            yield common | _choice(index, turn.request.prompt.shown, _prompt_scores(model, turn), None)
        for step in turn.stream.steps() if turn.stream is not None else ():
            scores = _table(model, [step.score], so_far) if step.score is not None else None
            yield common | _choice(index, step.text, scores, None)
            so_far += len(step.text)
        yield common | _choice(index, "", None, _finish(turn))
    if include_usage:
        yield head.fields() | {"choices": [], "usage": _usage(turns)}


def reply(turns: Sequence[Turn], head: Head, model: Llava) -> dict[str, Any]:
    """All choices in one object."""
    choices = []
    for index, turn in enumerate(turns):
        text = turn.request.prompt.shown if turn.echo else ""
        scores = _prompt_scores(model, turn) if turn.echo else None
        steps = list(turn.stream.steps()) if turn.stream is not None else []
        if turn.n_top is not None:
            answer = _table(model, [step.score for step in steps if step.score is not None], len(text))
            scores = answer if scores is None else {key: scores[key] + answer[key] for key in answer}
        text += "".join(step.text for step in steps)
        choices.append(_choice(index, text, scores, _finish(turn))["choices"][0])
    first = turns[0].stream
    timings = {} if first is None else extras(first.reply)
    return head.fields() | {"choices": choices, "usage": _usage(turns)} | timings


def _choice(index: int, text: str, scores: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "logprobs": scores, "finish_reason": finish}]}


def _finish(turn: Turn) -> str | None:
    return "length" if turn.stream is None else turn.stream.reply.finish_reason


def _prompt_scores(model: Llava, turn: Turn) -> dict[str, Any] | None:
    if turn.n_top is None:
        return None
    ids = turn.request.token_ids
    scores = score_prompt(model.each_logits(turn.request), ids, turn.n_top)
    first: dict[str, Any] = {
        "tokens": [model.tokenizer.piece(ids[0])],
        "token_logprobs": [None],
        "top_logprobs": [None],
        "text_offset": [0],
    }
    rest = _table(model, [score for score in scores[1:] if score is not None], len(model.tokenizer.piece(ids[0])))
    return {key: first[key] + rest[key] for key in first}


def _table(model: Llava, scores: Sequence[Score], offset: int) -> dict[str, Any]:
    table: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for score in scores:
        text = model.tokenizer.piece(score.token_id)
        table["tokens"].append(text)
        table["token_logprobs"].append(max(score.logprob, LEAST))
        table["top_logprobs"].append(
            {model.tokenizer.piece(i): max(logprob, LEAST) for i, logprob in reversed(score.top)}
        )
        table["text_offset"].append(offset)
        offset += len(text)
    return table


def _usage(turns: Sequence[Turn]) -> dict[str, Any]:
    """A prompt of several choices counts once, with what its first choice found cached."""
    first = list({id(turn.request): turn for turn in reversed(turns)}.values())
    ids = [token for turn in first for token in turn.request.token_ids]
    cached = sum(turn.stream.clock.cached_tokens for turn in first if turn.stream is not None)
    return usage(ids, sum(turn.completion_tokens for turn in turns), cached)
