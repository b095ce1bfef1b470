"""Turns the bytes of a request into work for the model's thread, and makes all checks. Runs in a thread pool.

Pictures are decoded and prompts tokenised here, while the model's thread answers another request. Only forward passes
are left for that thread, including those of the vision tower.
"""

import time
import uuid
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..chat.chunks import TextChunk
from ..chat.messages import Fetch, parse_messages
from ..chat.rendering import Prompt
from ..generation.answer import Stream, Turn
from ..generation.request import Request
from ..model import Llava
from ..records.request import RecordedRequest
from ..tokenizer.quote import Quote
from . import completions, handler
from .body import parse_json
from .calling import Calling, decide
from .conversations import chat_request, message_warnings, prompt_end, reserve_pixels
from .errors import library_errors, refuse
from .handler import ResponseHead
from .limits import Allowance, Limits
from .models import LoadedModel
from .progress import RequestProgress
from .recorder import AskedRecord
from .respond import EventForm
from .schema import ChatRequest, CompletionRequest, GenerationRequest, parse
from .worker import Items, Work


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked request that is ready to run."""

    model: Llava
    stream: bool
    work: Work
    """Returns an iterator of response objects: one, or with `stream` one per chunk; and of turns in between."""
    streams: tuple[Stream, ...]
    pixels: int
    """Taken from the shared allowance until the request is done."""
    progress: RequestProgress | None = None
    """Told to the client until the answer begins."""
    events: EventForm = EventForm()
    """How the objects of a stream are sent."""


def chat(
    body: bytearray, loaded: LoadedModel, limits: Limits, pixel_allowance: Allowance, fetch: Fetch | None, strict: bool
) -> Prepared:
    """Parse and check a chat request. Raises ApiError."""
    raw = parse_json(body)
    params, warnings = parse(ChatRequest, raw, strict=strict)
    _check_combinations(params)
    asked = params.asked_calls()
    with library_errors(raw, "messages"), ExitStack() as on_error:
        messages = parse_messages(params.messages, allow_objects=False, fetch=fetch)
        pixels = reserve_pixels(messages, limits, pixel_allowance)
        on_error.callback(pixel_allowance.give_back, pixels)
        end = prompt_end(params, messages)
        calling = decide(loaded, asked, params.wanted)
        prompt = partial(RecordedRequest.conversation, end.messages, add=end.add, continues=end.continues)
        id = _new_id("chatcmpl-")
        kept = loaded.recorder.kept(params.record, id, partial(prompt, tools=calling.tools))
        request = chat_request(loaded, end.messages, calling, add=end.add, continues=end.continues)
        streams = tuple(_answer(loaded, request, params, calling, kept, i) for i in range(params.n_choices))
        on_error.pop_all()
    warnings += message_warnings(params.messages, strict=strict) + end.warnings + calling.warnings
    head, model = _head(loaded, params, id, "chat.completion", warnings), loaded.model

    def work() -> Items:
        if params.stream:
            yield from handler.chat_chunks(streams, head, model.tokenizer, calling, params.include_usage)
        else:
            scores = yield from _prompt_scores(model, request, params.prompt_logprobs)
            reply = yield from handler.chat_reply(streams, head, model.tokenizer, calling)
            yield reply | scores

    progress = None
    if params.return_progress:
        progress = RequestProgress(loaded.blocks, streams[0], handler.empty_chunk(head, params.include_usage))
    return Prepared(model, bool(params.stream), work, streams, pixels, progress)


def _check_combinations(params: ChatRequest) -> None:
    """Make the checks that involve more than one parameter. Raises ApiError."""
    if params.top_logprobs and not params.logprobs:
        raise refuse("top_logprobs", "top_logprobs: requires logprobs: true")
    if params.prompt_logprobs is not None and params.stream:
        raise refuse("prompt_logprobs", "prompt_logprobs: not possible with stream: true", "unsupported_value")
    if params.return_progress and not params.stream:
        raise refuse("return_progress", "return_progress: requires stream: true")
    _check_stream(params)
    if params.logprobs and params.tools and params.tool_choice != "none":
        raise refuse("logprobs", "logprobs: not possible with tools", "unsupported_value")
    form = params.response_format
    if form is None:
        return
    if form.type != "json_schema" and form.json_schema is not None:
        raise refuse("response_format.json_schema", "response_format.json_schema: requires type json_schema")
    if form.type == "json_schema" and (form.json_schema is None) == (form.schema_ is None):
        raise refuse(
            "response_format.json_schema",
            "response_format.json_schema: expected exactly one schema for type json_schema",
        )
    if form.type == "text" and form.schema_ is not None:
        raise refuse("response_format.schema", "response_format.schema: requires type json_object or json_schema")


def _check_stream(params: GenerationRequest) -> None:
    if params.include_usage and not params.stream:
        raise refuse("stream_options", "stream_options: requires stream: true")


def _answer(
    loaded: LoadedModel,
    request: Request,
    params: ChatRequest,
    calling: Calling,
    kept: AskedRecord | None,
    choice: int,
) -> Stream:
    top = (params.top_logprobs or 0) if params.logprobs else None
    sampling = replace(params.sampling(choice, top), grammar=calling.grammar)
    stop = [*params.stops, *loaded.stops]
    return loaded.recorder.answer(request, sampling, max_tokens=params.limit, stop=stop, kept=kept, index=choice)


def _prompt_scores(model: Llava, request: Request, n_top: int | None) -> Generator[Turn, None, dict[str, Any]]:
    if n_top is None:
        return {}
    scores = yield from handler.prompt_scores(model, request, n_top)
    return {"prompt_logprobs": handler.prompt_logprobs(model.tokenizer, scores)}


def completion(body: bytearray, loaded: LoadedModel, strict: bool) -> Prepared:
    """Parse and check a completion request. Raises ApiError."""
    raw = parse_json(body)
    params, warnings = parse(CompletionRequest, raw, strict=strict)
    if params.max_tokens == 0 and not params.echo:
        raise refuse("max_tokens", "max_tokens: 0 requires echo: true")
    if params.max_tokens == 0 and params.record:
        raise refuse("record", "record: requires an answer, and max_tokens is 0", "unsupported_value")
    _check_stream(params)
    model, id, choices = loaded.model, _new_id("cmpl-"), list[completions.CompletionChoice]()
    with library_errors(raw, "prompt"):
        for prompt in _prompts(params):
            request = _text_request(model, prompt)
            kept = loaded.recorder.kept(params.record, id, partial(_asked, prompt, request))
            for i in range(params.n_choices):
                choices.append(_completion_choice(loaded, request, prompt, params, i, kept, len(choices)))
    head = _head(loaded, params, id, "text_completion", warnings)

    def work() -> Items:
        if params.stream:
            yield from completions.chunks(choices, head, model, params.include_usage)
        else:
            yield (yield from completions.reply(choices, head, model))

    return Prepared(model, bool(params.stream), work, tuple(choice.stream for choice in choices if choice.stream), 0)


def _prompts(params: CompletionRequest) -> list[str | list[int]]:
    """Return the prompts as a list: the parameter is one text, one list of token ids, or a list of either."""
    if isinstance(params.prompt, str):
        return [params.prompt]
    return [p for p in params.prompt if not isinstance(p, int)] or [[t for t in params.prompt if isinstance(t, int)]]


def _text_request(model: Llava, prompt: str | list[int]) -> Request:
    """Make a request of a raw prompt. The answer continues its text, unless the prompt is only BOS."""
    if isinstance(prompt, str):
        request = model.raw_request(prompt)
    else:
        text = model.tokenizer.decode(prompt, special=True)  # raises ParameterError for an unknown id
        shown = Prompt(text, Quote.over([text], model.tokenizer.control_texts), ())
        request = Request(shown, (TextChunk(tuple(prompt)),))
    return replace(request, continues=any(token != model.tokenizer.bos_id for token in request.token_ids))


def _asked(prompt: str | list[int], request: Request) -> RecordedRequest:
    if isinstance(prompt, str):
        return RecordedRequest(prompt=prompt, continues=request.continues)
    return RecordedRequest(token_ids=prompt, continues=request.continues)


def _completion_choice(
    loaded: LoadedModel,
    request: Request,
    prompt: str | list[int],
    params: CompletionRequest,
    choice: int,
    kept: AskedRecord | None,
    index: int,
) -> completions.CompletionChoice:
    limit = 16 if params.max_tokens is None else params.max_tokens
    stream = None
    if limit:
        sampling = params.sampling(choice, params.logprobs)
        answer = loaded.recorder.answer
        stream = answer(request, sampling, max_tokens=limit, stop=params.stops, kept=kept, index=index)
    return completions.CompletionChoice(request, prompt, stream, bool(params.echo), params.logprobs)


def _new_id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex


def _head(
    loaded: LoadedModel, params: GenerationRequest, id: str, kind: str, warnings: tuple[str, ...]
) -> ResponseHead:
    """Return the fields that all objects of a response share; the object type of a streamed chat ends in `.chunk`."""
    return ResponseHead(
        id,
        f"{kind}.chunk" if kind.startswith("chat") and params.stream else kind,
        int(time.time()),
        loaded.name if params.model is None else params.model,
        loaded.fingerprint,
        warnings,
    )
