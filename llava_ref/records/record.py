"""A record of a run: plain data that JSON holds. `docs/replay.md` describes the file."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .. import gguf
from ..errors import ParameterError
from ..files import read_regular
from ..generation.grammar import JsonGrammars
from ..generation.sampling import Sampling, WantedAnswer
from ..json_text import JsonError, parse_json_text
from ..model import Llava
from .request import RecordedRequest
from .stages import HashedPass
from .typed import read_as

FORMAT = "llava-ref record 1"
MAX_BYTES = 128 * 2**20
"""Of a file with a record, written or read."""
NUMBERS = [each.name for each in fields(Sampling) if each.metadata and each.name != "top_logprobs"]


@dataclass(frozen=True, slots=True)
class HashedFile:
    """One file of a model; of a split model there are several."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a model was loaded. `template`: the source of the chat template in use."""

    backend: str
    device: str
    precision: str
    profile: str
    quirks: dict[str, str]
    threads: int | None
    n_context: int
    template: str | None


@dataclass(frozen=True, slots=True)
class Answered:
    """What the model answered."""

    token_ids: list[int]
    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """A run: what it was made with, what was asked, and what came out, down to the hash of every array."""

    format: str
    versions: dict[str, str]
    """Of the packages, and what multiplied matrices."""
    files: dict[str, list[HashedFile]]
    """The text model's and the mmproj file's, if there is one: `text`, `mmproj`."""
    settings: RunSettings
    asked: RecordedRequest
    sampling: dict[str, float | int | None]
    max_tokens: int | None
    """0 if there was no answer, and every position's logits were computed."""
    prompt_ids: list[int]
    """One a position, -1 where a picture stands."""
    answer: Answered | None
    passes: list[HashedPass]
    logit_bias: dict[str, float] = field(default_factory=dict)
    wanted: WantedAnswer | None = None
    """The form that the answer had to have: JSON, or calls of functions."""
    stop: list[str] = field(default_factory=list)

    def text(self) -> bytes:
        """Return the file. Raises ParameterError if it is larger than one that can be read again."""
        data = (json.dumps(asdict(self), ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()
        if len(data) > MAX_BYTES:
            raise ParameterError("record", "bytes", f"{len(data):,}, expected at most {MAX_BYTES:,}")
        return data

    def chosen(self, model: Llava) -> Sampling:
        """Return how tokens are chosen. Raises ParameterError for a setting that is unknown or out of range."""
        for name in self.sampling:
            if name not in NUMBERS:
                raise ParameterError("sampling", name, f"unknown, expected one of {', '.join(NUMBERS)}")
        grammar = None if self.wanted is None else JsonGrammars(model.tokenizer).again(self.wanted)
        bias = {_token(name): number for name, number in self.logit_bias.items()}
        return Sampling(**self.sampling, logit_bias=bias, grammar=grammar)  # type: ignore[arg-type]


def _token(text: str) -> int:
    if not text.isdecimal() or len(text) > 10:
        raise ParameterError("logit_bias", repr(text), "expected a token id")
    return int(text)


def hashed_files(model: Llava) -> dict[str, list[HashedFile]]:
    """Read every file of a model for its hash. A half that stands in the other's file is not named again."""
    halves = {"text": model.text.file}
    if model.has_tower and model.tower.file is not model.text.file:
        halves["mmproj"] = model.tower.file
    return {half: _hashed(file.path) for half, file in halves.items()}


def _hashed(path: Path) -> list[HashedFile]:
    return [HashedFile(part.name, part.stat().st_size, digest) for part, digest in gguf.hashes([path]).items()]


def read_record(path: Path) -> Record:
    """Read a record that anybody may have written. Raises ParameterError, which names the field that is wrong."""

    def fail(where: str, problem: str) -> ParameterError:
        return ParameterError(path, where, problem)

    try:
        value = parse_json_text(_bytes(path), "the file")
    except JsonError as error:
        raise fail("record", str(error)) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise fail("format", f"not a record of this version, expected {FORMAT!r}")
    record: Record = read_as(Record, value, fail)
    return record


def _bytes(path: Path) -> bytes:
    """Read a file of at most `MAX_BYTES`."""
    data = read_regular(path, MAX_BYTES, ParameterError)
    if len(data) > MAX_BYTES:
        raise ParameterError(path, "file", f"over {MAX_BYTES:,} bytes, which no record has")
    return data
