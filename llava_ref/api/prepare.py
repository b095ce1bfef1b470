"""A request's bytes -> work for the model, with everything that can be refused refused. Runs in threads of its own.

Pictures are decoded and prompts tokenised here, while another request is being answered; what is left for the model's
thread are forward passes. Rows of pictures are computed there, in `Llava`, and nowhere else.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from .. import images
from ..chat import Prompt, render_prompt
from ..errors import ImageError, PromptError
from ..generate import Request, Stream
from ..messages import Fetch, ImagePart, Message, parse_messages
from ..model import Llava
from ..prompt import TextChunk
from ..quote import Quote
from ..sampler import Grammar
from ..scores import score_prompt
from . import completions, handler
from .body import parse_json
from .errors import library_errors, refuse
from .handler import Head
from .limits import Budget, Limits
from .models import Loaded
from .schema import ChatRequest, CompletionRequest, parse

Items = Iterator[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Ready to run. `work` gives one object, or with `stream` one a piece; `pixels` are held until it is done."""

    model: Llava
    stream: bool
    work: Callable[[], Items]
    streams: tuple[Stream, ...]
    pixels: int


def chat(body: bytearray, loaded: Loaded, limits: Limits, held: Budget, fetch: Fetch | None) -> Prepared:
    """ApiError."""
    raw = parse_json(body)
    asked = parse(ChatRequest, raw)
    _check_chat(asked)
    with library_errors(raw, "messages"), ExitStack() as refused:
        messages = parse_messages(asked.messages, allow_objects=False, fetch=fetch)
        pixels = hold(messages, limits, held)
        refused.callback(held.give_back, pixels)
        request = chat_request(loaded, messages)
        grammar = _grammar(loaded, asked)
        streams = tuple(_answer(loaded, request, asked, grammar, i) for i in range(asked.choices))
        refused.pop_all()
    head, model = _head(loaded, asked.model, "chat.completion", bool(asked.stream)), loaded.model

    def work() -> Items:
        if asked.stream:
            yield from handler.chat_chunks(streams, head, model.tokenizer, asked.include_usage)
        else:
            scores = _prompt_scores(model, request, asked.prompt_logprobs)
            yield handler.chat_reply(streams, head, model.tokenizer) | scores

    return Prepared(model, bool(asked.stream), work, streams, pixels)


def _check_chat(asked: ChatRequest) -> None:
    """What hangs on more than one parameter."""
    if asked.top_logprobs is not None and not asked.logprobs:
        raise refuse("top_logprobs", "top_logprobs: needs logprobs: true")
    if asked.prompt_logprobs is not None and asked.stream:
        raise refuse("prompt_logprobs", "prompt_logprobs: not with stream: true", "unsupported_value")
    if asked.stream_options is not None and not asked.stream:
        raise refuse("stream_options", "stream_options: needs stream: true")
    form = asked.response_format
    if form is not None and (form.type == "json_schema") != (form.json_schema is not None):
        raise refuse("response_format.json_schema", "response_format.json_schema: goes with type json_schema")


def hold(messages: list[Message], limits: Limits, held: Budget) -> int:
    """Pixels of all pictures, known before one is decoded and taken from what requests share."""
    parts = [part for message in messages for part in message.parts if isinstance(part, ImagePart)]
    if len(parts) > limits.max_images:
        raise PromptError(parts[limits.max_images].where, "image", f"one too many, at most {limits.max_images} images")
    total = 0
    for part in parts:
        assert isinstance(part.source, bytes)
        width, height = images.measure(part.source, part.where)
        total += width * height
        if total > limits.max_pixels:
            problem = f"{total:,} pixels with the pictures before it, expected at most {limits.max_pixels:,}"
            raise ImageError(part.where, "size", problem)
    held.take(total)
    return total


def chat_request(loaded: Loaded, messages: list[Message]) -> Request:
    template = loaded.prompts or loaded.model.template
    order = loaded.model.engine.quirks.image_order
    return loaded.model.prepared(render_prompt(messages, template, loaded.model.tokenizer, image_order=order))


def _grammar(loaded: Loaded, asked: ChatRequest) -> Grammar | None:
    form = asked.response_format
    if form is None or form.type == "text":
        return None
    return loaded.grammars.grammar(None if form.json_schema is None else form.json_schema.schema_)


def _answer(loaded: Loaded, request: Request, asked: ChatRequest, grammar: Grammar | None, choice: int) -> Stream:
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    sampling = replace(asked.sampling(choice, top), grammar=grammar)
    return loaded.model.answer(request, sampling, max_tokens=asked.limit, stop=[*asked.stops, *loaded.stops])


def _prompt_scores(model: Llava, request: Request, n_top: int | None) -> dict[str, Any]:
    if n_top is None:
        return {}
    scores = score_prompt(model.each_logits(request), request.token_ids, n_top)
    return {"prompt_logprobs": handler.prompt_logprobs(model.tokenizer, scores)}


def completion(body: bytearray, loaded: Loaded) -> Prepared:
    """ApiError."""
    raw = parse_json(body)
    asked = parse(CompletionRequest, raw)
    if asked.max_tokens == 0 and not asked.echo:
        raise refuse("max_tokens", "max_tokens: 0 needs echo: true")
    if asked.stream_options is not None and not asked.stream:
        raise refuse("stream_options", "stream_options: needs stream: true")
    model, turns = loaded.model, []
    with library_errors(raw, "prompt"):
        for where, prompt in _prompts(asked):
            request = _text_request(model, prompt, where)
            turns += [_turn(model, request, asked, i) for i in range(asked.choices)]
    head = _head(loaded, asked.model, "text_completion", stream=False)

    def work() -> Items:
        if asked.stream:
            yield from completions.chunks(turns, head, model, asked.include_usage)
        else:
            yield completions.reply(turns, head, model)

    return Prepared(model, bool(asked.stream), work, tuple(turn.stream for turn in turns if turn.stream), 0)


def _prompts(asked: CompletionRequest) -> list[tuple[str, str | list[int]]]:
    """Each with its place: one text, one list of ids, or a list of either."""
    if isinstance(asked.prompt, str):
        return [("prompt", asked.prompt)]
    prompts = [prompt for prompt in asked.prompt if not isinstance(prompt, int)]
    if prompts:
        return [(f"prompt[{i}]", prompt) for i, prompt in enumerate(prompts)]
    return [("prompt", [token for token in asked.prompt if isinstance(token, int)])]


def _text_request(model: Llava, prompt: str | list[int], where: str) -> Request:
    if isinstance(prompt, str):
        return model.raw_request(prompt)
    text = model.tokenizer.decode(prompt, special=True)  # ParameterError for an id that there is not
    shown = Prompt(text, Quote.over([text], model.tokenizer.control_texts), ())
    return Request(shown, (TextChunk(tuple(prompt)),), (), model.tokens_per_image, 0.0)


def _turn(model: Llava, request: Request, asked: CompletionRequest, choice: int) -> completions.Turn:
    limit = 16 if asked.max_tokens is None else asked.max_tokens
    stream = None
    if limit:
        sampling = asked.sampling(choice, asked.logprobs)
        stream = model.answer(request, sampling, max_tokens=limit, stop=asked.stops)
    return completions.Turn(request, stream, bool(asked.echo), asked.logprobs)


def _head(loaded: Loaded, name: str | None, kind: str, stream: bool) -> Head:
    prefix = "chatcmpl-" if kind.startswith("chat") else "cmpl-"
    kind = f"{kind}.chunk" if stream else kind
    return Head(
        prefix + uuid.uuid4().hex, kind, int(time.time()), loaded.name if name is None else name, loaded.fingerprint
    )
