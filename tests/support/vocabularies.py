"""Small vocabularies for tests: written as GGUF files, read back as tokenizers."""

import random
from pathlib import Path

from llava_ref import gguf
from llava_ref.conformance.pairs.writing import write
from llava_ref.tokenizer.bpe import byte_letters
from llava_ref.tokenizer.spm import SPACE
from llava_ref.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ODD = "ab  \n\t.,'<>|/▁éß中🦙\u0301\u200d\ufeff\x00\u3000١½s"


def odd_text(rng: random.Random, n: int = 25) -> str:
    return "".join(rng.choice(ODD) for _ in range(rng.randrange(n)))


def load(path: Path, **keys: object) -> Tokenizer:
    """A tokenizer from a file with these keys; tokenizer.ggml. and general. are written as ggml_ and general_."""
    metadata = {"general.architecture": "llama"}
    for name, value in keys.items():
        family, _, key = name.partition("_")
        metadata[{"ggml": "tokenizer.ggml.", "general": "general."}[family] + key] = value
    file = path / "vocabulary.gguf"
    write(file, metadata, {})
    return Tokenizer.from_gguf(gguf.read(file))


def words(tokenizer: Tokenizer, text: str, **options: bool) -> list[str]:
    return [tokenizer.text_of(i) for i in tokenizer.encode(text, **options)]


BYTES = [f"<0x{b:02X}>" for b in range(256)]
# id                0        1      2       3          4         5         6        7
SPM_SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<image>", "<|im|>", "hello", "<|"]
SPM_TYPES = [UNKNOWN, CONTROL, CONTROL, CONTROL, CONTROL, CONTROL, USER, USER]
SPM_WORDS = [SPACE, "a", "b", "ab", "▁a", "▁ab", "ba", "</", "s>", "<", "/", "s", ">", "|", "u", "e", "r"]


def spm_keys(**changes: object) -> dict[str, object]:
    texts = SPM_SPECIAL + BYTES + SPM_WORDS
    keys: dict[str, object] = {
        "ggml_model": "llama",
        "ggml_tokens": texts,
        "ggml_scores": [0.0] * 264 + [-float(i) for i in range(len(SPM_WORDS))],
        "ggml_token_type": SPM_TYPES + [BYTE] * 256 + [NORMAL] * len(SPM_WORDS),
    }
    return keys | changes


def bpe_keys(**changes: object) -> dict[str, object]:
    letters = byte_letters()
    texts = [*letters, "ab", "Ġa", "Ġab", "abab", "<|im_start|>", "<|im_end|>", "  ", "<think>"]
    keys: dict[str, object] = {
        "ggml_model": "gpt2",
        "ggml_pre": "gpt-2",
        "ggml_tokens": texts,
        "ggml_token_type": [NORMAL] * 260 + [CONTROL, CONTROL, USER, USER],
        "ggml_merges": ["a b", "Ġ a", "Ġ ab", "ab ab"],
    }
    return keys | changes
