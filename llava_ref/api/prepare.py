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
from ..chat.chunks import TextChunk
from ..chat.messages import Fetch, ImagePart, Message, TextPart, parse_messages, unheard
from ..chat.rendering import Prompt, render_prompt
from ..errors import ImageError, PromptError, printable
from ..generation.answer import Request, Stream
from ..generation.sampler import Grammar
from ..generation.scores import score_prompt
from ..model import Llava
from ..tokenizer.quote import Quote
from . import completions, handler
from .body import parse_json
from .errors import library_errors, refuse
from .handler import Head
from .limits import Budget, Limits
from .models import Loaded
from .parameters import short
from .schema import ChatRequest, Common, CompletionRequest, parse

Items = Iterator[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Ready to run. `work` gives one object, or with `stream` one a piece; `pixels` are held until it is done."""

    model: Llava
    stream: bool
    work: Callable[[], Items]
    streams: tuple[Stream, ...]
    pixels: int


def chat(body: bytearray, loaded: Loaded, limits: Limits, held: Budget, fetch: Fetch | None, strict: bool) -> Prepared:
    """ApiError."""
    raw = parse_json(body)
    asked, warnings = parse(ChatRequest, raw, strict=strict)
    _check_chat(asked)
    with library_errors(raw, "messages"), ExitStack() as refused:
        messages = parse_messages(asked.messages, allow_objects=False, fetch=fetch)
        pixels = hold(messages, limits, held)
        refused.callback(held.give_back, pixels)
        end = ending(asked, messages)
        request = chat_request(loaded, end.messages, add=end.add, continues=end.continues)
        grammar = _grammar(loaded, asked)
        streams = tuple(_answer(loaded, request, asked, grammar, i) for i in range(asked.choices))
        refused.pop_all()
    warnings += notes(asked.messages, strict=strict) + end.notes
    head, model = _head(loaded, asked, "chat.completion", warnings), loaded.model

    def work() -> Items:
        if asked.stream:
            yield from handler.chat_chunks(streams, head, model.tokenizer, asked.include_usage)
        else:
            scores = _prompt_scores(model, request, asked.prompt_logprobs)
            yield handler.chat_reply(streams, head, model.tokenizer) | scores

    return Prepared(model, bool(asked.stream), work, streams, pixels)


def notes(messages: Any, *, strict: bool) -> tuple[str, ...]:
    """Return what within messages has no effect. ApiError if `strict` and there is any."""
    found = unheard(messages)
    if strict and found:
        raise refuse(found[0], f"{found[0]}: not supported", "unsupported_parameter")
    return short([f"{printable(path, 200)}: has no effect here" for path in found])


def _check_chat(asked: ChatRequest) -> None:
    """What hangs on more than one parameter."""
    if asked.top_logprobs and not asked.logprobs:
        raise refuse("top_logprobs", "top_logprobs: needs logprobs: true")
    if asked.prompt_logprobs is not None and asked.stream:
        raise refuse("prompt_logprobs", "prompt_logprobs: not with stream: true", "unsupported_value")
    _check_stream(asked)
    form = asked.response_format
    if form is None:
        return
    if form.type != "json_schema" and form.json_schema is not None:
        raise refuse("response_format.json_schema", "response_format.json_schema: goes with type json_schema")
    if form.type == "json_schema" and (form.json_schema is None) == (form.schema_ is None):
        raise refuse("response_format.json_schema", "response_format.json_schema: type json_schema needs one schema")
    if form.type == "text" and form.schema_ is not None:
        raise refuse("response_format.schema", "response_format.schema: goes with a type of JSON")


def _check_stream(asked: Common) -> None:
    if asked.include_usage and not asked.stream:
        raise refuse("stream_options", "stream_options: needs stream: true")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a conversation goes over into the answer."""

    messages: list[Message]
    add: bool
    continues: bool
    notes: tuple[str, ...] = ()


def ending(asked: ChatRequest, messages: list[Message]) -> Ending:
    """Return what was asked for; by default an assistant's message that is last is continued.

    llama.cpp's server, Ollama and transformers' pipeline do so too, for no model has learned to follow its own message
    with another. vLLM begins a new message unless it is asked to go on."""
    add, continues = asked.add_generation_prompt, asked.continue_final_message
    *before, last = messages
    if add is not None or continues is not None or last.role != "assistant":
        return Ending(messages, not continues if add is None else add, bool(continues))
    if before and not any(isinstance(part, TextPart) and part.text.strip() for part in last.parts):
        return Ending(before, True, False)  # it says nothing yet
    note = f"messages[{len(before)}]: the answer continues this message; add_generation_prompt: true begins a new one"
    return Ending(messages, False, True, (note,))


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


def chat_request(loaded: Loaded, messages: list[Message], *, add: bool = True, continues: bool = False) -> Request:
    model = loaded.model
    prompt = render_prompt(
        messages,
        loaded.prompts or model.template,
        model.tokenizer,
        image_order=model.engine.quirks.image_order,
        add_generation_prompt=add,
        continue_final_message=continues,
    )
    return replace(model.prepared(prompt), continues=continues)


def _grammar(loaded: Loaded, asked: ChatRequest) -> Grammar | None:
    form = asked.response_format
    if form is None or form.type == "text":
        return None
    if form.json_schema is not None:
        return loaded.grammars.grammar(form.json_schema.schema_, "response_format.json_schema")
    return loaded.grammars.grammar(form.schema_, "response_format")


def _answer(loaded: Loaded, request: Request, asked: ChatRequest, grammar: Grammar | None, choice: int) -> Stream:
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    sampling = replace(asked.sampling(choice, top), grammar=grammar)
    return loaded.model.answer(request, sampling, max_tokens=asked.limit, stop=[*asked.stops, *loaded.stops])


def _prompt_scores(model: Llava, request: Request, n_top: int | None) -> dict[str, Any]:
    if n_top is None:
        return {}
    scores = score_prompt(model.each_logits(request), request.token_ids, n_top)
    return {"prompt_logprobs": handler.prompt_logprobs(model.tokenizer, scores)}


def completion(body: bytearray, loaded: Loaded, strict: bool) -> Prepared:
    """ApiError."""
    raw = parse_json(body)
    asked, warnings = parse(CompletionRequest, raw, strict=strict)
    if asked.max_tokens == 0 and not asked.echo:
        raise refuse("max_tokens", "max_tokens: 0 needs echo: true")
    _check_stream(asked)
    model, turns = loaded.model, []
    with library_errors(raw, "prompt"):
        for prompt in _prompts(asked):
            request = _text_request(model, prompt)
            turns += [_turn(model, request, prompt, asked, i) for i in range(asked.choices)]
    head = _head(loaded, asked, "text_completion", warnings)

    def work() -> Items:
        if asked.stream:
            yield from completions.chunks(turns, head, model, asked.include_usage)
        else:
            yield completions.reply(turns, head, model)

    return Prepared(model, bool(asked.stream), work, tuple(turn.stream for turn in turns if turn.stream), 0)


def _prompts(asked: CompletionRequest) -> list[str | list[int]]:
    """One text, one list of ids, or a list of either."""
    if isinstance(asked.prompt, str):
        return [asked.prompt]
    return [p for p in asked.prompt if not isinstance(p, int)] or [[t for t in asked.prompt if isinstance(t, int)]]


def _text_request(model: Llava, prompt: str | list[int]) -> Request:
    """A prompt as it stands. Its answer goes on in the middle of a text unless there is nothing but BOS."""
    if isinstance(prompt, str):
        request = model.raw_request(prompt)
    else:
        text = model.tokenizer.decode(prompt, special=True)  # ParameterError for an id that there is not
        shown = Prompt(text, Quote.over([text], model.tokenizer.control_texts), ())
        request = Request(shown, (TextChunk(tuple(prompt)),), (), model.tokens_per_image, 0.0)
    return replace(request, continues=any(token != model.tokenizer.bos_id for token in request.token_ids))


def _turn(
    model: Llava, request: Request, prompt: str | list[int], asked: CompletionRequest, choice: int
) -> completions.Turn:
    limit = 16 if asked.max_tokens is None else asked.max_tokens
    stream = None
    if limit:
        sampling = asked.sampling(choice, asked.logprobs)
        stream = model.answer(request, sampling, max_tokens=limit, stop=asked.stops)
    return completions.Turn(request, prompt, stream, bool(asked.echo), asked.logprobs)


def _head(loaded: Loaded, asked: Common, kind: str, warnings: tuple[str, ...]) -> Head:
    """The fields that all objects of an answer have in common; a chat's chunks are called so."""
    chat = kind.startswith("chat")
    return Head(
        ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
        f"{kind}.chunk" if chat and asked.stream else kind,
        int(time.time()),
        loaded.name if asked.model is None else asked.model,
        loaded.fingerprint,
        warnings,
    )
