"""Types of single parameters: numbers, limits, biases, strings, each with its range and its JSON Schema."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from ..generation.sampling import MAX_TOP, Sampling
from .limits import MAX_STOP_LENGTH

NO_LIMIT = 2**31 - 1


class StrictModel(BaseModel):
    """Base of all types: no type conversions, no infinity. Undeclared fields are kept, for `undeclared.check`."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)


SETTINGS = {field.name: field for field in fields(Sampling) if field.metadata}


def setting(name: str, note: str = "", *, low: float | None = None) -> Any:
    """Declare a field as `Sampling` does: its range, with another `low` where the wire has one, and its sentence."""
    declared = SETTINGS[name]
    text = declared.metadata["does"] + (f" ({note})" if note else "")
    low = declared.metadata["low"] if low is None else low
    return Field(None, ge=low, le=declared.metadata["high"], description=f"{text[0].upper()}{text[1:]}.")


def integral(value: Any) -> Any:
    """Convert 5.0 to 5: JSON does not distinguish them."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def to_limit(value: Any) -> Any:
    return NO_LIMIT if integral(value) == -1 and not isinstance(value, bool) else value


def to_biases(value: Any) -> Any:
    """Convert llama.cpp's list of pairs to an object. Raises ValueError for an entry that is not such a pair."""
    if not isinstance(value, list):
        return value
    biases: dict[str, Any] = {}
    for i, pair in enumerate(value):
        token = integral(pair[0]) if isinstance(pair, list) and len(pair) == 2 else None
        if not isinstance(token, int) or isinstance(token, bool):
            raise ValueError(f"entry {i}: expected [token id, number]")
        if str(token) in biases:
            raise ValueError(f"entry {i}: token {token} occurs twice, expected each token once")
        biases[str(token)] = MIN_BIAS if pair[1] is False else pair[1]
    return biases


MIN_BIAS = -100.0  # the lowest bias; llama.cpp writes it as false
Int = Annotated[int, BeforeValidator(integral)]
Seed = Annotated[Int, Field(ge=-(2**63), lt=2**64)]
PositiveInt = Annotated[Int, Field(ge=1, le=NO_LIMIT)]
Limit = Annotated[
    PositiveInt,
    BeforeValidator(to_limit),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": NO_LIMIT}, {"const": -1}]}),
]
LimitOrZero = Annotated[
    Int,
    Field(ge=0, le=NO_LIMIT),
    BeforeValidator(to_limit),
    WithJsonSchema({"type": "integer", "minimum": -1, "maximum": NO_LIMIT}),
]
"""A limit that may be 0 too."""
Stop = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
Top = Annotated[Int, Field(ge=0, le=MAX_TOP)]
Recorded = Annotated[
    bool | None,
    Field(description="Record the answer for `llava-ref replay`, where the server was started with --record-dir."),
]
Label = Annotated[str, Field(max_length=1024)]
TokenId = Annotated[Int, Field(ge=0, le=2**31 - 1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Ids = Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]
PAIR_SCHEMA = {"type": "array", "prefixItems": [{"type": "integer", "minimum": 0}, {"type": ["number", "boolean"]}]}
BIASES_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
        {"type": "array", "items": PAIR_SCHEMA | {"minItems": 2, "maxItems": 2}},
    ]
}
Biases = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Bias],
    BeforeValidator(to_biases),
    WithJsonSchema(BIASES_SCHEMA),
]
