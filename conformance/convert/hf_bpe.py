"""Read the byte-level BPE vocabulary of a Hugging Face folder's `tokenizer.json` into GGUF metadata.

A GGUF file names the rule for cutting text. `RULES` has that name for what a tokenizer.json says, in the words of
llama.cpp b11549 (conversion/base.py knows them by a hash of what they do to a text).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..pairs.writing import Metadata
from .hf_config import ConversionError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
RULES = {  # types of the steps, and the pattern of a cut
    ("Digits", "ByteLevel", None): "smollm",
    (
        "Split",
        "ByteLevel",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): "llama-bpe",
    (
        "Split",
        "ByteLevel",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): "qwen2",
    (
        "Split",
        "ByteLevel",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): "tekken",
}


def read_bpe(folder: Path, n_rows: int) -> Metadata:
    """Return the `tokenizer.` keys of a checkpoint with `n_rows` embeddings. Raises ConversionError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConversionError(folder, "tokenizer.json", "missing file")
    fast, settings = json.loads(path.read_text("utf-8")), _settings(folder)
    model = fast["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ConversionError(path, "model", f"{model.get('type')!r} is not byte-level BPE")
    ids = {index: (text, NORMAL) for text, index in model["vocab"].items()}
    for token in fast.get("added_tokens", []):
        ids[token["id"]] = token["content"], CONTROL if token["special"] else USER_DEFINED
    if max(ids) >= n_rows:
        raise ConversionError(folder, "vocab_size", f"is {n_rows}, but the tokenizer has more tokens")
    rows = [ids.get(i, (f"[PAD{i}]", UNUSED)) for i in range(n_rows)]
    named = {name: _named(path, settings, ids, name) for name in ("bos", "eos")}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _rule(path, fast.get("pre_tokenizer") or {}),
        "tokenizer.ggml.tokens": [text for text, _ in rows],
        "tokenizer.ggml.token_type": [kind for _, kind in rows],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.add_bos_token": _puts_bos(fast),
        **{f"tokenizer.ggml.{name}_token_id": index for name, index in named.items() if index is not None},
    }


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def _rule(path: Path, cutter: Mapping[str, Any]) -> str:
    steps = cutter.get("pretokenizers") or [cutter]
    pattern = next((step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"), None)
    key = (*(step.get("type") for step in steps), pattern)
    if key not in RULES:
        raise ConversionError(path, "pre_tokenizer", f"{key!r}: no known name in a GGUF file")
    return RULES[key]


def _named(path: Path, settings: Mapping[str, Any], ids: Mapping[int, tuple[str, int]], name: str) -> int | None:
    """Return the id of a special token that tokenizer_config.json names."""
    found = settings.get(f"{name}_token")
    text = found.get("content") if isinstance(found, dict) else found
    if text is None:
        return None
    index = next((index for index, (known, _) in ids.items() if known == text), None)
    if index is None:
        raise ConversionError(path, f"{name}_token", f"has no token {text!r}")
    return index


def _puts_bos(fast: Mapping[str, Any]) -> bool:
    """Tell whether the tokenizer begins every text with a special token."""
    processor = fast.get("post_processor") or {}
    steps = processor.get("processors") or [processor]
    return any("SpecialToken" in step.get("single", [{}])[0] for step in steps if step.get("single"))
