"""Requests as types: each parameter's name, type and range, checked before anything else is done with them.

What is not declared here is refused by name. A parameter that is accepted without effect says so in its description;
those descriptions are the OpenAPI page's too. JSON null means the default, everywhere.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from ..sampler import MAX_TOP, Sampling
from .errors import ApiError, value_at
from .limits import MAX_CHOICES, MAX_PROMPTS, MAX_STOP_LENGTH, MAX_STOPS
from .shapes import LOOKED_AT, MESSAGES, SLOT


def _no(value: bool) -> bool:
    if value:
        raise ValueError("expected false")
    return value


def _none(value: list[Any]) -> list[Any]:
    if value:
        raise ValueError("not supported, expected an empty list")
    return value


No = Annotated[bool, AfterValidator(_no), WithJsonSchema({"const": False})]  # Literal[False] would take 0 for false
Nothing = Annotated[list[Any], AfterValidator(_none), WithJsonSchema({"type": "array", "maxItems": 0})]
Whole = Annotated[int, Field(ge=1, le=2**31 - 1)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Top = Annotated[int, Field(ge=0, le=MAX_TOP)]
Label = Annotated[str, Field(max_length=1024)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Ids = Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]
NO_EFFECT = "Accepted; has no effect here."
UNSUPPORTED = "Not supported; null asks for nothing."


class Strict(BaseModel):
    """No conversions, no other fields, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="One more chunk before [DONE], with the usage and no choices.")
    include_obfuscation: No | None = Field(None, description="There is none.")


class JsonSchema(Strict):
    name: Label | None = Field(None, description=NO_EFFECT)
    description: str | None = Field(None, description=NO_EFFECT)
    schema_: dict[str, Any] = Field(alias="schema", description="A JSON Schema, as far as llguidance knows it.")
    strict: bool | None = Field(None, description="The schema is always kept to, so this has no effect.")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Common(Strict):
    """What chat and completions share."""

    model: Label | None = Field(None, description="Any name. The model that is loaded answers; the name is echoed.")
    max_tokens: Whole | None = Field(None, description="Tokens of an answer. Default: to the end of the context.")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="An answer ends before the first of these."
    )
    stream: bool | None = Field(None, description="Answer piece by piece, as server-sent events.")
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="Answers to give.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = Field(
        None, description="The same seed gives the same answer; answer i of n has seed + i. Default: a new one."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="0, the default, is greedy. (OpenAI's default is 1.)"
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = Field(None, description="0 and -1, the default: off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Bias] | None = Field(
        None, description="Token id to a number that is added to its logit."
    )
    user: Label | None = Field(None, description=NO_EFFECT)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, choice: int, top_logprobs: int | None) -> Sampling:
        """Of answer number `choice`."""
        return Sampling(
            temperature=_or(self.temperature, 0.0),
            top_k=max(0, _or(self.top_k, 0)),
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            repeat_penalty=_or(self.repeat_penalty, 1.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            seed=None if self.seed is None else (self.seed + choice) % 2**64,
            top_logprobs=top_logprobs,
        )


class ChatRequest(Common):
    """`POST /v1/chat/completions`."""

    messages: Annotated[Any, WithJsonSchema(MESSAGES)]
    max_completion_tokens: Whole | None = Field(None, description="The same as max_tokens, and goes before it.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the tokens of the answer.")
    top_logprobs: Top | None = Field(None, description="With logprobs: and so many of the likeliest tokens.")
    prompt_logprobs: Top | None = Field(
        None, description="Log-probabilities of the prompt's tokens, and so many of the likeliest. Not with stream."
    )
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    store: No | None = Field(None, description="Nothing is stored.")
    metadata: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    safety_identifier: Label | None = Field(None, description=NO_EFFECT)
    prompt_cache_key: Label | None = Field(None, description=NO_EFFECT)
    prompt_cache_retention: Label | None = Field(None, description=NO_EFFECT)
    service_tier: Literal["auto", "default"] | None = Field(None, description=NO_EFFECT)
    verbosity: Literal["medium"] | None = Field(None, description="The default, which has no effect.")
    reasoning_effort: Literal["none"] | None = Field(None, description="These models have none.")
    tools: Nothing | None = Field(None, description="Only an empty list.")
    tool_choice: Literal["none", "auto"] | None = Field(None, description="There are no tools to choose.")
    parallel_tool_calls: bool | None = Field(None, description="There are no tools to call.")
    functions: Nothing | None = Field(None, description="Only an empty list.")
    function_call: Literal["none", "auto"] | None = Field(None, description="There are no functions to call.")
    audio: None = Field(None, description=UNSUPPORTED)
    moderation: None = Field(None, description=UNSUPPORTED)
    prediction: None = Field(None, description=UNSUPPORTED)
    prompt_cache_options: None = Field(None, description=UNSUPPORTED)
    web_search_options: None = Field(None, description=UNSUPPORTED)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class LookRequest(Strict):
    """`POST /v1/look`."""

    messages: Annotated[Any, WithJsonSchema(LOOKED_AT)]
    model: Label | None = Field(None, description="Any name. The model that is loaded answers.")


class CompletionRequest(Common):
    """`POST /v1/completions`: the prompt as it stands. Control tokens in it count."""

    prompt: (
        Annotated[str, SLOT]
        | Ids
        | Annotated[list[Annotated[str, SLOT] | Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="Tokens of an answer; 0 with echo. Default: 16, as OpenAI's."
    )
    echo: bool | None = Field(None, description="The prompt before the answer; with logprobs, those of both.")
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = Field(
        None, description="Log-probabilities of the tokens, and so many of the likeliest."
    )
    suffix: Literal[""] | None = Field(None, description="Only an empty one.")
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


class TokenizeRequest(Strict):
    content: str
    add_special: bool | None = Field(None, description="Begin with BOS, if the model's texts do. Default: false.")
    parse_special: bool | None = Field(None, description="Read control tokens in the text. Default: true.")
    with_pieces: bool | None = Field(None, description="Give each token's text too. Default: false.")


class DetokenizeRequest(Strict):
    tokens: Annotated[list[TokenId], Field(max_length=1_000_000)]


T = TypeVar("T", bound=Strict)
V = TypeVar("V")


def _or(value: V | None, default: V) -> V:
    return default if value is None else value


def parse(kind: type[T], body: Any) -> T:
    """A request's JSON as `kind`. ApiError 400 names the first place that is wrong."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise _refusal(body, [dict(detail) for detail in details]) from None


def _refusal(body: Any, details: list[dict[str, Any]]) -> ApiError:
    """Of the errors of a choice of types, that of the type which the value was nearest to."""
    detail = max(details, key=lambda d: (not d["type"].endswith("_type"), len(_path(body, d["loc"]))))
    path, kind = _path(body, detail["loc"]), detail["type"]
    if kind in ("extra_forbidden", "none_required"):
        return ApiError(400, f"{path}: not supported", param=path, code="unsupported_parameter")
    if kind == "missing":
        path = f"{path}.{detail['loc'][-1]}" if path else str(detail["loc"][-1])
        return ApiError(400, f"{path}: missing", param=path, code="missing_required_parameter")
    expected = str(detail["msg"]).replace("Input should be", "expected").removeprefix("Value error, ")
    return ApiError(
        400,
        f"{path}: {expected}",
        param=path,
        code="unsupported_value" if kind in ("literal_error", "value_error") else "invalid_value",
    )


def _path(body: Any, loc: Any) -> str:
    """Where in `body`: pydantic's location without the names of types that it puts between."""
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
