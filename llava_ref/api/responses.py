"""Reads the requests of OpenAI's Responses API, which become the same requests to the model as those of chats.

Nothing is stored here, so each request holds its whole conversation, and whatever refers to a stored one is refused.
"""

import time
import uuid
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, WithJsonSchema

from ..chat.messages import Fetch, Message, TextPart
from ..generation.request import Request
from ..generation.sampling import Grammar, Sampling
from ..records.request import RecordedRequest
from .body import parse_json
from .calling import PARALLEL, TOOL_CHOICE, TOOLS, AskedCalls, Mode, ResponsesChosenTool, ResponsesTools, Wanted, decide
from .conversations import chat_request, message_warnings, reserve_pixels
from .errors import library_errors, refuse
from .fields import Label, Limit, Recorded, Seed, StrictModel, setting
from .limits import Allowance, Limits
from .models import LoadedModel
from .parameters import RESPONSES
from .prepare import Prepared
from .response_events import AnswerEvents, ResponseEvents
from .response_items import read_input, without_unheard
from .schema import RequestBody, parse
from .shapes import INPUT
from .worker import Items

STORED = {  # what refers to something that a server keeps, and what to do without
    "previous_response_id": "no answer is stored here: send the whole conversation in input",
    "conversation": "no conversation is stored here: send all of it in input",
    "prompt": "no prompt is stored here: send its text in instructions",
    "background": "no answer is stored here: wait for it, or use stream",
}
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class TextFormat(StrictModel):
    """The format of an answer, as the Responses API has it."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="The kind of format.")
    name: Label | None = Field(None, description="A name of the schema; it is returned.")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="A JSON Schema that llguidance supports, for type json_schema."
    )


class TextOptions(StrictModel):
    """Options of the text of an answer."""

    format: TextFormat | None = Field(None, description="The format of the answer; text by default.")


class InputRequest(RequestBody):
    """The body of `POST /v1/responses/input_tokens`: a conversation."""

    table = RESPONSES
    input: Annotated[Any, WithJsonSchema(INPUT)]
    instructions: str | None = Field(None, description="A system message in front of the input.")
    model: Label | None = Field(None, description="Any name; it is returned, and the loaded model answers.")
    tools: ResponsesTools | None = Field(None, description=TOOLS)
    tool_choice: Mode | ResponsesChosenTool | None = Field(None, description=TOOL_CHOICE)
    parallel_tool_calls: bool | None = Field(None, description=PARALLEL)

    def asked_calls(self) -> AskedCalls:
        """Return the functions and the choice between them. Raises ApiError."""
        tools = (tool.tool(f"tools[{i}]") for i, tool in enumerate(self.tools or []))
        return AskedCalls.read(tools, self.tool_choice, self.parallel_tool_calls, "tool_choice.name")


class ResponsesRequest(InputRequest):
    """The body of `POST /v1/responses`."""

    max_output_tokens: Limit | None = Field(
        None, description="Maximum number of tokens to generate; -1, the default, allows the rest of the context."
    )
    temperature: float | None = setting("temperature", "OpenAI's default is 1")
    top_p: float | None = setting("top_p")
    seed: Seed | None = Field(None, description="The same seed gives the same answer; the default is random.")
    text: TextOptions | None = Field(None, description="Options of the answer's text.")
    stream: bool | None = Field(None, description="Send the answer piece by piece, as server-sent events.")
    record: Recorded = None
    metadata: Metadata | None = Field(None, description="Up to 16 pairs of texts; they are returned.")

    @property
    def format(self) -> TextFormat:
        return (self.text and self.text.format) or TextFormat.model_validate({"type": "text"})

    @property
    def wanted(self) -> Wanted | None:
        """Return the JSON Schema of the answer; None for text."""
        return None if self.format.type == "text" else (self.format.schema_, "text.format.schema")

    def sampling(self, grammar: Grammar | None) -> Sampling:
        given = {name: getattr(self, name) for name in ("temperature", "top_p") if getattr(self, name) is not None}
        seed = None if self.seed is None else self.seed % 2**64
        return Sampling(**given, seed=seed, grammar=grammar)


def prepare_response(
    body: bytearray, loaded: LoadedModel, limits: Limits, pixel_allowance: Allowance, fetch: Fetch | None, strict: bool
) -> Prepared:
    """Parse and check a request of the Responses API. Raises ApiError."""
    raw = parse_json(body)
    params, warnings = _parse(ResponsesRequest, raw, strict)
    if (params.format.type == "json_schema") != (params.format.schema_ is not None):
        raise refuse("text.format.schema", "text.format.schema: expected with type json_schema, and with no other")
    with library_errors(raw, "input"), ExitStack() as on_error:
        messages = conversation(params, fetch)
        pixels = reserve_pixels(messages, limits, pixel_allowance)
        on_error.callback(pixel_allowance.give_back, pixels)
        calling = decide(loaded, params.asked_calls(), params.wanted)
        request = chat_request(loaded, messages, calling)
        head = _head(loaded, params)
        asked = partial(RecordedRequest.conversation, messages, tools=calling.tools)
        stream = loaded.recorder.answer(
            request,
            params.sampling(calling.grammar),
            max_tokens=params.max_output_tokens,
            stop=loaded.stops,
            kept=loaded.recorder.kept(params.record, head["id"], asked),
        )
        on_error.pop_all()
    answer = AnswerEvents(head, stream, loaded.model.tokenizer, calling.reader(), warnings + calling.warnings)

    def work() -> Items:
        yield from answer.events() if params.stream else answer.result()

    return Prepared(loaded.model, bool(params.stream), work, (stream,), pixels, events=ResponseEvents(answer))


def count_input(
    body: bytearray, loaded: LoadedModel, limits: Limits, pixel_allowance: Allowance, fetch: Fetch | None, strict: bool
) -> dict[str, Any]:
    """Return the number of positions of a conversation, pictures included. Raises ApiError."""
    raw = parse_json(body)
    params, _ = _parse(InputRequest, raw, strict)
    with library_errors(raw, "input"), ExitStack() as at_end:
        messages = conversation(params, fetch)
        at_end.callback(pixel_allowance.give_back, reserve_pixels(messages, limits, pixel_allowance))
        request: Request = chat_request(loaded, messages, decide(loaded, params.asked_calls(), None))
        return {"object": "response.input_tokens", "input_tokens": len(request.token_ids)}


T = TypeVar("T", bound=InputRequest)


def _parse(kind: type[T], raw: Any, strict: bool) -> tuple[T, tuple[str, ...]]:
    """Parse a body; returns it and the warnings. Raises ApiError."""
    for name, reason in STORED.items():
        if isinstance(raw, dict) and raw.get(name) not in (None, False):
            raise refuse(name, f"{name}: {reason}", "unsupported_parameter")
    tools = raw.get("tools") if isinstance(raw, dict) else None
    for i, tool in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(tool, dict) and tool.get("type") != "function":
            where = f"tools[{i}].type"
            raise refuse(where, f"{where}: {tool.get('type')!r} is not supported: there are no built-in tools")
    params, warnings = parse(kind, raw, strict=strict)
    return params, warnings + message_warnings(without_unheard(params.input), "input", strict=strict)


def conversation(params: InputRequest, fetch: Fetch | None) -> list[Message]:
    """Return the messages of a request. Raises PromptError and ApiError."""
    messages = read_input(params.input, fetch)
    if params.instructions:
        messages.insert(0, Message("system", (TextPart(params.instructions, "instructions"),)))
    return messages


def _head(loaded: LoadedModel, params: ResponsesRequest) -> dict[str, Any]:
    """Return the fields of the response that are known before the answer."""
    form: dict[str, Any] = {"type": params.format.type}
    if params.format.schema_ is not None:
        form |= {"name": params.format.name or "answer", "schema": params.format.schema_, "strict": True}
    sampling = params.sampling(None)
    return {
        "id": "resp_" + uuid.uuid4().hex,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": params.instructions,
        "max_output_tokens": params.max_output_tokens,
        "metadata": params.metadata or {},
        "model": loaded.name if params.model is None else params.model,
        "output": [],
        "parallel_tool_calls": params.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": form},
        "tool_choice": _plain(params.tool_choice) or "auto",
        "tools": [{"parameters": None, "strict": True} | _plain(tool) for tool in params.tools or []],
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _plain(value: Any) -> Any:
    """Return a part of the request as the client wrote it."""
    return value.model_dump(exclude_none=True) if isinstance(value, StrictModel) else value
