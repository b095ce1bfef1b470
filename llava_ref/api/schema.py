"""Requests as types: each parameter's name, type and range, checked before anything else is done with them.

What is declared here is obeyed. What is not is no error by itself: `parameters` says for each name whether it is
accepted in silence, warned of, or refused. JSON null means the default, everywhere.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from ..generation.sampler import MAX_TOP, Sampling
from .errors import ApiError, value_at
from .limits import MAX_CHOICES, MAX_PROMPTS, MAX_STOP_LENGTH, MAX_STOPS
from .parameters import REQUESTS, TEXTS, Table, check
from .shapes import LOOKED_AT, MESSAGES, SLOT

NO_LIMIT = 2**31 - 1


def _whole(value: Any) -> Any:
    """5.0 is a whole number, as JSON has it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _limit(value: Any) -> Any:
    return NO_LIMIT if _whole(value) == -1 and not isinstance(value, bool) else value


def _biases(value: Any) -> Any:
    """llama.cpp's list of pairs as an object. ValueError for an entry that is no pair of a token id and a number."""
    if not isinstance(value, list):
        return value
    biases: dict[str, Any] = {}
    for i, pair in enumerate(value):
        token = _whole(pair[0]) if isinstance(pair, list) and len(pair) == 2 else None
        if not isinstance(token, int) or isinstance(token, bool):
            raise ValueError(f"entry {i}: expected [token id, number]")
        if str(token) in biases:
            raise ValueError(f"entry {i}: token {token} has a bias already, expected each once")
        biases[str(token)] = NEVER if pair[1] is False else pair[1]
    return biases


NEVER = -100.0  # what llama.cpp calls false: the lowest bias there is
Int = Annotated[int, BeforeValidator(_whole)]
Whole = Annotated[Int, Field(ge=1, le=NO_LIMIT)]
Limit = Annotated[
    Whole,
    BeforeValidator(_limit),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": NO_LIMIT}, {"const": -1}]}),
]
Stop = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
Top = Annotated[Int, Field(ge=0, le=MAX_TOP)]
Label = Annotated[str, Field(max_length=1024)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[Int, Field(ge=0, le=2**31 - 1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Ids = Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]
PAIR = {"type": "array", "prefixItems": [{"type": "integer", "minimum": 0}, {"type": ["number", "boolean"]}]}
BIASES = {
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
        {"type": "array", "items": PAIR | {"minItems": 2, "maxItems": 2}},
    ]
}
Biases = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Bias], BeforeValidator(_biases), WithJsonSchema(BIASES)
]


class Part(BaseModel):
    """No conversions, no infinities. Other fields are kept for `parameters`."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)


class Strict(Part):
    """A request. `table` says what is done with parameters that it does not declare."""

    table: ClassVar[Table] = REQUESTS
    model_config = ConfigDict(json_schema_extra=lambda schema, kind: kind.table.describe(schema))


class StreamOptions(Part):
    include_usage: bool | None = Field(None, description="One more chunk before [DONE], with the usage and no choices.")


class JsonSchema(Part):
    schema_: dict[str, Any] = Field(alias="schema", description="A JSON Schema, as far as llguidance knows it.")


class ResponseFormat(Part):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="The same, as llama.cpp has it.")


class Common(Strict):
    """What chat and completions share."""

    model: Label | None = Field(None, description="Any name. The model that is loaded answers; the name is echoed.")
    max_tokens: Limit | None = Field(
        None, description="Tokens of an answer. -1, the default: to the end of the context."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="An answer ends before the first of these. An empty one stops nothing."
    )
    stream: bool | None = Field(None, description="Answer piece by piece, as server-sent events.")
    stream_options: StreamOptions | None = None
    n: Annotated[Int, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="Answers to give.")
    seed: Annotated[Int, Field(ge=-(2**63), lt=2**64)] | None = Field(
        None, description="The same seed gives the same answer; answer i of n has seed + i. Default: a new one."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="0, the default, is greedy. (OpenAI's default is 1.)"
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=-1, le=2**31 - 1)] | None = Field(None, description="0 and -1, the default: off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = Field(
        None, description="Token id to a number that is added to its logit; or pairs of both, false being -100."
    )

    @property
    def stops(self) -> list[str]:
        return [stop for stop in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if stop]

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
    max_completion_tokens: Limit | None = Field(None, description="The same as max_tokens, and goes before it.")
    add_generation_prompt: bool | None = Field(
        None, description="Begin an answer of its own. Default: unless an assistant's message is last."
    )
    continue_final_message: bool | None = Field(
        None, description="Go on with the last message. Default: if it is the assistant's."
    )
    logprobs: bool | None = Field(None, description="Log-probabilities of the tokens of the answer.")
    top_logprobs: Top | None = Field(None, description="With logprobs: and so many of the likeliest tokens.")
    prompt_logprobs: Top | None = Field(
        None, description="Log-probabilities of the prompt's tokens, and so many of the likeliest. Not with stream."
    )
    response_format: ResponseFormat | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class LookRequest(Strict):
    """`POST /v1/look`."""

    table = TEXTS

    messages: Annotated[Any, WithJsonSchema(LOOKED_AT)]
    model: Label | None = Field(None, description="Any name. The model that is loaded answers.")


class CompletionRequest(Common):
    """`POST /v1/completions`: the prompt as it stands. Control tokens in it count."""

    prompt: (
        Annotated[str, SLOT]
        | Ids
        | Annotated[list[Annotated[str, SLOT] | Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[Int, BeforeValidator(_limit), Field(ge=0, le=NO_LIMIT)] | None = Field(
        None, description="Tokens of an answer; 0 with echo; -1: to the end of the context. Default: 16, as OpenAI's."
    )
    echo: bool | None = Field(None, description="The prompt before the answer; with logprobs, those of both.")
    logprobs: Top | None = Field(None, description="Log-probabilities of the tokens, and so many of the likeliest.")


class TokenizeRequest(Strict):
    table = TEXTS
    content: str
    add_special: bool | None = Field(None, description="Begin with BOS, if the model's texts do. Default: false.")
    parse_special: bool | None = Field(None, description="Read control tokens in the text. Default: true.")
    with_pieces: bool | None = Field(None, description="Give each token's text too. Default: false.")


class DetokenizeRequest(Strict):
    table = TEXTS
    tokens: Annotated[list[TokenId], Field(max_length=1_000_000)]


T = TypeVar("T", bound=Strict)
V = TypeVar("V")


def _or(value: V | None, default: V) -> V:
    return default if value is None else value


def parse(kind: type[T], body: Any, *, strict: bool) -> tuple[T, tuple[str, ...]]:
    """Return a request's JSON as `kind`, and what of it has no effect. ApiError 400 names the first wrong place."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    try:
        asked = kind.model_validate(body)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise _refusal(body, [dict(detail) for detail in details]) from None
    return asked, check(asked, kind.table, strict=strict)


def _refusal(body: Any, details: list[dict[str, Any]]) -> ApiError:
    """Of the errors of a choice of types, that of the type which the value was nearest to."""
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
