"""Types of the requests: each parameter's name, type and range, checked before anything else is done.

Every parameter declared here has an effect. An undeclared one is not an error in itself: `parameters` says for each
name whether it is accepted silently, warned of or refused. JSON null means the default, everywhere.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema

from ..generation.sampling import Sampling
from .calling import PARALLEL, TOOL_CHOICE, TOOLS, AskedCalls, ChatTools, ChosenTool, Mode, Wanted
from .errors import ApiError, value_at
from .fields import (
    SETTINGS,
    Biases,
    Ids,
    Int,
    Label,
    Limit,
    LimitOrZero,
    PositiveInt,
    Recorded,
    Seed,
    Stop,
    StrictModel,
    TokenId,
    Top,
    setting,
)
from .limits import MAX_CHOICES, MAX_PROMPTS, MAX_STOPS
from .parameters import REQUESTS, TEXTS, ParameterTable
from .shapes import ANSWERED_MESSAGES, MESSAGES, PROMPT_TEXT
from .undeclared import check, describe


class RequestBody(StrictModel):
    """Base of all requests. `table`: what is done with the parameters that the type does not declare."""

    table: ClassVar[ParameterTable] = REQUESTS
    model_config = ConfigDict(json_schema_extra=lambda schema, kind: describe(kind.table, schema))


class StreamOptions(StrictModel):
    """Options of a streamed response."""

    include_usage: bool | None = Field(
        None, description="Send one more chunk before [DONE], with the usage and without choices."
    )


class JsonSchema(StrictModel):
    """OpenAI's wrapper around a JSON Schema."""

    schema_: dict[str, Any] = Field(alias="schema", description="A JSON Schema that llguidance supports.")


class ResponseFormat(StrictModel):
    """The format of the answer: text, any JSON object, or JSON that matches a schema."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="The kind of format.")
    json_schema: JsonSchema | None = Field(None, description="The schema that the answer must match, as OpenAI has it.")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="The schema that the answer must match, as llama.cpp has it."
    )


class GenerationRequest(RequestBody):
    """Base of chat and completion requests: length, sampling, streaming."""

    model: Label | None = Field(
        None, description="Any name; it is echoed in the response, and the loaded model answers."
    )
    max_tokens: Limit | None = Field(
        None, description="Maximum number of tokens to generate; -1, the default, allows the rest of the context."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Strings at which the answer stops, without including them; an empty string has no effect."
    )
    stream: bool | None = Field(None, description="Send the answer piece by piece, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Options of a stream; require stream.")
    n: Annotated[Int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, description="Number of answers to generate; default 1."
    )
    seed: Seed | None = Field(
        None, description="The same seed gives the same answer; answer i of n uses seed + i, and the default is random."
    )
    temperature: float | None = setting("temperature", "OpenAI's default is 1")
    top_p: float | None = setting("top_p")
    top_k: Int | None = setting("top_k", "so does -1", low=-1)
    min_p: float | None = setting("min_p")
    repeat_penalty: float | None = setting("repeat_penalty")
    frequency_penalty: float | None = setting("frequency_penalty")
    presence_penalty: float | None = setting("presence_penalty")
    record: Recorded = None
    logit_bias: Biases | None = Field(
        None,
        description="Maps token ids to values added to their logits; or a list of such pairs, with false for -100.",
    )

    @property
    def stops(self) -> list[str]:
        return [stop for stop in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if stop]

    @property
    def n_choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, choice: int, top_logprobs: int | None) -> Sampling:
        """Return the sampling settings of answer number `choice`, from 0."""
        given = {name: getattr(self, name) for name in SETTINGS if getattr(self, name, None) is not None}
        given["top_k"] = max(0, given.get("top_k", 0))
        given["logit_bias"] = {int(token): bias for token, bias in (self.logit_bias or {}).items()}
        if self.seed is not None:
            given["seed"] = (self.seed + choice) % 2**64
        return Sampling(**given | {"top_logprobs": top_logprobs})


class PromptedRequest(RequestBody):
    """What makes the prompt of a chat: messages, functions, and how the prompt ends."""

    messages: Annotated[Any, WithJsonSchema(MESSAGES)]
    add_generation_prompt: bool | None = Field(
        None, description="Begin a new assistant message; the default is true unless the last message is one."
    )
    continue_final_message: bool | None = Field(
        None, description="Continue the last message; the default is true if it is the assistant's."
    )
    tools: ChatTools | None = Field(None, description=TOOLS)
    tool_choice: Mode | ChosenTool | None = Field(None, description=TOOL_CHOICE)
    parallel_tool_calls: bool | None = Field(None, description=PARALLEL)

    def asked_calls(self) -> AskedCalls:
        """Return the functions and the choice between them. Raises ApiError."""
        tools = (tool.function.tool(f"tools[{i}].function") for i, tool in enumerate(self.tools or []))
        choice = self.tool_choice.function if isinstance(self.tool_choice, ChosenTool) else self.tool_choice
        return AskedCalls.read(tools, choice, self.parallel_tool_calls, "tool_choice.function.name")


class ChatRequest(GenerationRequest, PromptedRequest):
    """The body of `POST /v1/chat/completions`."""

    max_completion_tokens: Limit | None = Field(
        None, description="Same as max_tokens; takes precedence if both are given."
    )
    logprobs: bool | None = Field(None, description="Report the log-probabilities of the answer's tokens.")
    top_logprobs: Top | None = Field(
        None, description="Number of most likely tokens to report per position; requires logprobs."
    )
    prompt_logprobs: Top | None = Field(
        None,
        description="Report the prompt's log-probabilities, with this number of most likely tokens per position; "
        "not possible with stream.",
    )
    response_format: ResponseFormat | None = Field(None, description="The format of the answer; text by default.")
    return_progress: bool | None = Field(
        None,
        description="Send chunks without text, with the field prompt_progress, until the answer begins; requires "
        "stream.",
    )

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted(self) -> Wanted | None:
        """Return the JSON Schema of the answer; None for text."""
        form = self.response_format
        if form is None or form.type == "text":
            return None
        if form.json_schema is not None:
            return form.json_schema.schema_, "response_format.json_schema"
        return form.schema_, "response_format"


class TemplateRequest(PromptedRequest):
    """The body of `POST /apply-template`."""

    table = TEXTS


class LookRequest(RequestBody):
    """The body of `POST /v1/look`."""

    table = TEXTS

    messages: Annotated[Any, WithJsonSchema(ANSWERED_MESSAGES)]
    which: PositiveInt | None = Field(
        None, description="The number of the picture, from 1 for the conversation's first; the last by default."
    )
    model: Label | None = Field(None, description="Any name; the loaded model answers.")


class CompletionRequest(GenerationRequest):
    """The body of `POST /v1/completions`: a raw prompt, in which control tokens are recognised."""

    prompt: (
        Annotated[str, PROMPT_TEXT]
        | Ids
        | Annotated[list[Annotated[str, PROMPT_TEXT] | Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: LimitOrZero | None = Field(
        None,
        description="Maximum number of tokens to generate: 16 by default, as OpenAI's; -1 for the rest of the context; "
        "0 only with echo.",
    )
    echo: bool | None = Field(
        None, description="Return the prompt before the answer, with its log-probabilities if logprobs is given."
    )
    logprobs: Top | None = Field(
        None, description="Report log-probabilities, with this number of most likely tokens per position."
    )


class TokenizeRequest(RequestBody):
    """The body of `POST /tokenize`."""

    table = TEXTS
    content: str = Field(description="The text to tokenize.")
    add_special: bool | None = Field(
        None, description="Begin with BOS if the model's texts begin with it; default false."
    )
    parse_special: bool | None = Field(None, description="Recognise control tokens in the text; default true.")
    with_pieces: bool | None = Field(None, description="Return each token's text too; default false.")


class PromptTokensRequest(RequestBody):
    """The body of `POST /tokenize` in vLLM's form."""

    table = TEXTS
    prompt: str = Field(description="The text to tokenize, in which control tokens are recognised.")
    add_special_tokens: bool | None = Field(
        None, description="Begin with BOS if the model's texts begin with it; default true."
    )


class DetokenizeRequest(RequestBody):
    """The body of `POST /detokenize`."""

    table = TEXTS
    tokens: Annotated[list[TokenId], Field(max_length=1_000_000, description="The token ids to convert to text.")]


T = TypeVar("T", bound=RequestBody)


def parse(kind: type[T], body: Any, *, strict: bool) -> tuple[T, tuple[str, ...]]:
    """Parse a request's JSON as `kind`; returns it and the warnings. Raises ApiError 400 for the first wrong place."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    try:
        params = kind.model_validate(body)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise _refusal(body, [dict(detail) for detail in details]) from None
    return params, check(params, kind.table, strict=strict)


def _refusal(body: Any, details: list[dict[str, Any]]) -> ApiError:
    """Convert pydantic's errors to one. For a union it reports the error of the type that the value matched best."""
    detail = max(details, key=lambda d: (not d["type"].endswith("_type"), len(_path(body, d["loc"]))))
    path, kind = _path(body, detail["loc"]), detail["type"]
    if kind == "missing":
        path = f"{path}.{detail['loc'][-1]}" if path else str(detail["loc"][-1])
        return ApiError(400, f"{path}: missing", param=path, code="missing_required_parameter")
    expected = str(detail["msg"]).replace("Input should be", "expected").removeprefix("Value error, ")
    return ApiError(
        400,
        f"{path}: {expected}",
        param=path,
        code="unsupported_value" if kind == "literal_error" else "invalid_value",
    )


def _path(body: Any, loc: Any) -> str:
    """Return the JSON path in `body` of a pydantic location, without the type names that pydantic inserts."""
    path = ""
    for step in loc:
        if isinstance(step, int):
            longer = f"{path}[{step}]"
        else:
            longer = f"{path}.{step}" if path else str(step)
        value = value_at(body, path) if path else body
        if (isinstance(value, list) and isinstance(step, int) and step < len(value)) or (
            isinstance(value, Mapping) and step in value
        ):
            path = longer
    return path
