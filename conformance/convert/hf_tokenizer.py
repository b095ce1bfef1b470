"""Read the SPM vocabulary of a Hugging Face folder into GGUF metadata.

`tokenizer.model` is a protobuf message (sentencepiece_model.proto) and is read without the sentencepiece package. If
there is none, the BPE with byte fallback in `tokenizer.json` says the same: a piece's score is minus the rank of the
first merge that makes it, which is the order that SPM's greedy merging needs.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pairs.writing import Metadata
from .hf_config import ConversionError

LLAMA, GEMMA = ("<unk>", "<s>", "</s>"), ("<unk>", "<bos>", "<eos>")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # the same numbers in both formats


@dataclass(slots=True)
class SpmVocabulary:
    """Tokens by id in three lists of one length, and the rules that go with them."""

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    unknown: int = 0
    bos: int = 1
    eos: int = 2
    space_prefix: bool = True

    def append(self, text: str, score: float, kind: int) -> None:
        self.texts.append(text)
        self.scores.append(score)
        self.kinds.append(kind)

    def metadata(self) -> Metadata:
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": self.texts,
            "tokenizer.ggml.scores": self.scores,
            "tokenizer.ggml.token_type": self.kinds,
            "tokenizer.ggml.unknown_token_id": self.unknown,
            "tokenizer.ggml.bos_token_id": self.bos,
            "tokenizer.ggml.eos_token_id": self.eos,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_space_prefix": self.space_prefix,
        }


def read_folder(folder: Path, n_rows: int, image_token: int | None) -> SpmVocabulary:
    """Read the vocabulary of a checkpoint with `n_rows` embeddings.

    Added tokens keep their ids; one that the model's own vocabulary has too becomes a control or user-defined token. An
    added `<image>` (by id or name) or `<pad>` never stands in a prompt of token ids: it becomes an unused token, like a
    row without a token, and unused tokens at the end are dropped together with their rows."""
    model, settings = folder / "tokenizer.model", _json(folder / "tokenizer_config.json")
    fast = _json(folder / "tokenizer.json")
    if model.is_file():
        vocabulary = parse_sentencepiece(model.read_bytes(), str(model))
    elif fast:
        vocabulary = parse_tokenizers(fast, str(folder / "tokenizer.json"))
    else:
        raise ConversionError(folder, "tokenizer.model", "missing file, and there is no tokenizer.json either")
    base = len(vocabulary.texts)
    added = _added(folder, settings, fast)
    for index in added.keys() & range(base):
        if vocabulary.kinds[index] in (NORMAL, USER_DEFINED):
            vocabulary.kinds[index] = CONTROL if added[index][1] else USER_DEFINED
    for index in range(base, n_rows):
        text, special = added.get(index, (f"[PAD{index}]", True))
        unused = index not in added or index == image_token or text in ("<image>", "<pad>")
        vocabulary.append(text, 0.0, UNUSED if unused else CONTROL if special else USER_DEFINED)
    if base > n_rows or any(index >= n_rows for index, (text, _) in added.items() if text not in ("<image>", "<pad>")):
        raise ConversionError(folder, "vocab_size", f"is {n_rows}, but the tokenizer has more tokens")
    while len(vocabulary.texts) > base and vocabulary.kinds[-1] == UNUSED:
        for column in (vocabulary.texts, vocabulary.scores, vocabulary.kinds):
            column.pop()
    for index, kind in enumerate(vocabulary.kinds):
        if kind == USER_DEFINED:  # these are matched before blanks become "▁"
            vocabulary.texts[index] = vocabulary.texts[index].replace("▁", " ")
    return vocabulary


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _added(folder: Path, settings: dict[str, Any], fast: dict[str, Any]) -> dict[int, tuple[str, bool]]:
    """Return the tokens listed beside the model's own: id -> (text, whether it is a control token)."""
    listed = {index: (text, True) for text, index in _json(folder / "added_tokens.json").items()}
    decoder = settings.get("added_tokens_decoder") or {}
    listed |= {int(index): (token["content"], token["special"]) for index, token in decoder.items()}
    return listed | {token["id"]: (token["content"], token["special"]) for token in fast.get("added_tokens", [])}


def parse_sentencepiece(data: bytes, where: str) -> SpmVocabulary:
    """Parse a serialized sentencepiece ModelProto. Raises ConversionError if it is none, or not a BPE model."""
    vocabulary = SpmVocabulary()
    try:
        for number, value in _fields(data):
            if number == 1:  # repeated SentencePiece
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                vocabulary.append(piece[1].decode(), score, piece.get(3, NORMAL))
            elif number == 2:  # TrainerSpec
                _read_trainer(dict(_fields(value)), vocabulary, where)
            elif number == 3:  # NormalizerSpec
                normalizer = dict(_fields(value))
                vocabulary.space_prefix = bool(normalizer.get(3, 1))
                if normalizer.get(4, 1):
                    problem = "is true: GGUF's SPM keeps every space"
                    raise ConversionError(where, "normalizer_spec.remove_extra_whitespaces", problem)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise ConversionError(where, "message", f"not a sentencepiece model: {error}") from error
    return vocabulary


def _read_trainer(trainer: dict[int, Any], vocabulary: SpmVocabulary, where: str) -> None:
    if trainer.get(3, 1) != 2:
        raise ConversionError(where, "trainer_spec.model_type", "not BPE: its pieces are not merged by score")
    vocabulary.unknown, vocabulary.bos, vocabulary.eos = (trainer.get(40 + i, i) for i in range(3))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protobuf message: (number, an integer or bytes)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        if at + size > len(data):
            raise ValueError(f"field {number} reaches beyond the end")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read the integer at `at`; return it, and the index of the next field."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def parse_tokenizers(fast: dict[str, Any], where: str) -> SpmVocabulary:
    """Parse a `tokenizer.json`. Raises ConversionError unless it is BPE with byte fallback."""
    model = fast.get("model") or {}
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise ConversionError(where, "model", f"{model.get('type')!r} is not BPE with byte fallback, which SPM becomes")
    ids: dict[str, int] = model["vocab"]
    if sorted(ids.values()) != list(range(len(ids))):
        raise ConversionError(where, "model.vocab", "ids are not 0..n-1")
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    special = {token["content"] for token in fast.get("added_tokens", []) if token["special"]}
    vocabulary = SpmVocabulary(space_prefix=_adds_space(fast))
    for text in sorted(ids, key=ids.__getitem__):
        is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kind = UNKNOWN if text == "<unk>" else BYTE if is_byte else CONTROL if text in special else NORMAL
        vocabulary.append(text, -float(ranks.get(text, len(ranks))) if kind == NORMAL else 0.0, kind)
    names = GEMMA if "<bos>" in ids else LLAMA
    for text in names:
        if text not in ids:
            raise ConversionError(where, "model.vocab", f"has no {text} token")
    vocabulary.unknown, vocabulary.bos, vocabulary.eos = (ids[text] for text in names)
    return vocabulary


def _adds_space(fast: dict[str, Any]) -> bool:
    normalizer, splitter = fast.get("normalizer") or {}, fast.get("pre_tokenizer") or {}
    prepends = any(step.get("type") == "Prepend" for step in [normalizer, *normalizer.get("normalizers", [])])
    return prepends or (splitter.get("type") == "Metaspace" and splitter.get("prepend_scheme") != "never")
