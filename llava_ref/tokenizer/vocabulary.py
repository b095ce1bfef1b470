"""Read and check the `tokenizer.ggml.*` keys of a text model: tokens, their types, special tokens, rules.

The facts are those of llama.cpp b10605, src/llama-vocab.cpp. Many files name only some of their special tokens; the
others are found by their text.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from .pretokenizers import PRES, Pre

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
KEY = "tokenizer.ggml."
MAX_ID = (1 << 32) - 1

END_TEXTS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<｜end▁of▁sentence｜> [e~["
).split()
# A special token that no key names is the one with one of these texts. It counts as a control token.
FOUND_BY_TEXT = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
OLD_KEYS = {
    "fim_pre": "prefix",
    "fim_suf": "suffix",
    "fim_mid": "middle",
}  # read after the new keys, so they take precedence
ENDING = ("fim_pad", "fim_rep", "fim_sep", "eos", "eot", "eom")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary of a model, V tokens. `notes` are warnings about the file for the user, one sentence each."""

    path: Path
    model: str  # "llama": SPM, "gpt2": byte-pair encoding
    pre: Pre | None  # None for SPM
    texts: list[str]  # V pieces as stored; an empty one becomes "[EMPTY_id]"
    types: list[int]  # V, one of NORMAL, UNKNOWN, ... each
    scores: list[float]  # V for SPM, else empty
    merges: list[str]  # for BPE, best first
    ids: dict[str, int]  # text -> id
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    control: frozenset[int]  # control and unknown tokens, which never become text
    end_ids: frozenset[int]  # every token that ends a generation
    strip_left: frozenset[int]  # special tokens that strip the blanks before them
    strip_right: frozenset[int]  # special tokens that strip the blanks after them
    notes: tuple[str, ...]


def read_vocabulary(file: GGUFFile) -> Vocabulary:
    """Read a vocabulary. Raises GGUFError for a bad or missing key, an unknown model or pre-tokenizer, equal tokens."""
    model = file.string(KEY + "model")
    if model not in ("llama", "gpt2"):
        raise GGUFError(file.path, KEY + "model", f"is {model!r}, expected 'llama' (SPM) or 'gpt2' (BPE)")
    notes: list[str] = []
    pre = read_pre(file, notes) if model == "gpt2" else None
    texts = read_texts(file)
    ids = ids_by_text(file, texts)
    types = read_types(file, texts)
    special = special_ids(file, pre, ids, len(texts), notes)
    end_ids = ends(special, ids)
    control = controls(types, special, end_ids, ids)
    strip_left, strip_right = strips(file, ids, control, types)
    return Vocabulary(
        path=file.path,
        model=model,
        pre=pre,
        texts=texts,
        types=types,
        scores=[] if pre else read_scores(file, len(texts)),
        merges=read_merges(file, pre) if pre else [],
        ids=ids,
        bos_id=special["bos"],
        eos_id=special["eos"],
        unknown_id=special["unknown"],
        add_bos=read_add_bos(file, pre, special["bos"]),
        add_eos=file.boolean(KEY + "add_eos_token", False),
        add_space_prefix=file.boolean(KEY + "add_space_prefix", pre is None),
        control=control,
        end_ids=end_ids,
        strip_left=strip_left,
        strip_right=strip_right,
        notes=tuple(notes),
    )


def read_pre(file: GGUFFile, notes: list[str]) -> Pre:
    """Get the pre-tokenizer of a BPE file; a missing name means "default" and a note."""
    name = file.string(KEY + "pre", "")
    if not name:
        name = "default"
        notes.append(f"{KEY}pre is missing: text is cut by the 'default' rules, which may not be the model's own")
    if name not in PRES:
        problem = f"unknown pre-tokenizer {name!r}, expected one of llama.cpp's {len(PRES)}"
        raise GGUFError(file.path, KEY + "pre", problem)
    return PRES[name]


def read_add_bos(file: GGUFFile, pre: Pre | None, bos_id: int | None) -> bool:
    """Say whether texts start with BOS. Raises GGUFError if they do and the vocabulary has none."""
    add = file.boolean(KEY + "add_bos_token", pre.add_bos if pre else True) or (pre is not None and pre.always_bos)
    if add and bos_id is None:
        raise GGUFError(file.path, KEY + "bos_token_id", "texts start with BOS here, expected the id of a token")
    return add


def read_texts(file: GGUFFile) -> list[str]:
    """Read the texts of the tokens; an empty one becomes "[EMPTY_id]"."""
    texts = file.array(KEY + "tokens", "string")
    if not texts:
        raise GGUFError(file.path, KEY + "tokens", "is empty, expected at least one token")
    return [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]


def ids_by_text(file: GGUFFile, texts: list[str]) -> dict[str, int]:
    """Map each text to its id. Raises GGUFError for two equal texts."""
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) < len(texts):
        i, text = next((i, text) for i, text in enumerate(texts) if ids[text] != i)
        problem = f"tokens {i} and {ids[text]} are both {text!r}, expected each text once"
        raise GGUFError(file.path, KEY + "tokens", problem)
    return ids


def read_types(file: GGUFFile, texts: list[str]) -> list[int]:
    """Read one type for each token; without the key all tokens are normal. Surplus entries are ignored."""
    types: list[int] = file.array(KEY + "token_type", "int", [NORMAL] * len(texts))
    if len(types) < len(texts):
        problem = f"has {len(types)} entries, expected {len(texts)}: one for each token"
        raise GGUFError(file.path, KEY + "token_type", problem)
    for i, (text, kind) in enumerate(zip(texts, types, strict=False)):
        if kind == BYTE and not re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text):
            problem = f"token {i} has type byte and text {text!r}, expected e.g. '<0x0A>'"
            raise GGUFError(file.path, KEY + "tokens", problem)
    return types[: len(texts)]


def read_scores(file: GGUFFile, n: int) -> list[float]:
    """Read one score for each token: float32, or int32, which llama.cpp accepts too. Surplus entries are ignored."""
    key = KEY + "scores"
    integers = key in file and file.describe(key)[0] == "array[i32]"
    scores = [float(s) for s in file.array(key, "int" if integers else "float")]
    if len(scores) < n:
        raise GGUFError(file.path, key, f"has {len(scores)} entries, expected {n}: one for each token")
    return scores[:n]


def read_merges(file: GGUFFile, pre: Pre) -> list[str]:
    """Read the merges, which only kimi-k2 may lack."""
    optional = pre is PRES["kimi-k2"]
    return file.array(KEY + "merges", "string", []) if optional else file.array(KEY + "merges", "string")


def special_ids(
    file: GGUFFile, pre: Pre | None, ids: dict[str, int], n: int, notes: list[str]
) -> dict[str, int | None]:
    """Get the ids of the special tokens: the file's if in range, else by text, else llama.cpp's defaults."""
    special: dict[str, int | None] = {"bos": 1, "eos": 2, "unknown": 0, "eot": None, "eom": None}
    if pre:
        special |= {"bos": 11 if pre.default_bos else None, "eos": 11, "unknown": None}
    special = {name: i if i is not None and i < n else None for name, i in special.items()}
    special |= dict.fromkeys(FOUND_BY_TEXT)
    for name, key in [*((name, name) for name in special), *OLD_KEYS.items()]:
        given = file.integer(f"{KEY}{key}_token_id", -MAX_ID, MAX_ID, None)
        if given is not None and 0 <= given < n:
            special[name] = given
        elif given is not None:
            notes.append(f"{KEY}{key}_token_id is {given}, not a token of this vocabulary: ignored")
    for name, texts in FOUND_BY_TEXT.items():
        if special[name] is None:
            special[name] = first(ids, texts.split())
    return special


def first(ids: dict[str, int], texts: Iterable[str]) -> int | None:
    """Return the lowest id of the tokens with these texts, or None."""
    return min((ids[text] for text in texts if text in ids), default=None)


def ends(special: dict[str, int | None], ids: dict[str, int]) -> frozenset[int]:
    """Return the tokens that end a generation. With return and call tokens present, `<|end|>` only ends a channel."""
    end_ids = {ids[text] for text in END_TEXTS if text in ids}
    end_ids |= {i for name in ENDING if (i := special[name]) is not None}
    calls = "<|call|>" in ids or "<|calls|>" in ids
    if calls and ("<|return|>" in ids or "<|flush|>" in ids):
        end_ids.discard(ids.get("<|end|>", -1))
    if "<|tool_response>" in ids:
        end_ids.discard(ids.get("</s>", -1))
    return frozenset(end_ids)


def controls(
    types: list[int], special: dict[str, int | None], end_ids: frozenset[int], ids: dict[str, int]
) -> frozenset[int]:
    """Return control and unknown tokens, and those that their text makes control tokens whatever their type."""
    named = {i for name, texts in FOUND_BY_TEXT.items() if (i := special[name]) in {ids.get(t) for t in texts.split()}}
    named |= {ids[text] for text in END_TEXTS if ids.get(text) in end_ids}
    typed = frozenset(i for i, kind in enumerate(types) if kind in (CONTROL, UNKNOWN))
    return typed | {i for i in named if i is not None}


def strips(
    file: GGUFFile, ids: dict[str, int], control: frozenset[int], types: list[int]
) -> tuple[frozenset[int], frozenset[int]]:
    """Return the special tokens that strip blanks. GGUF has no key for this, so llama.cpp goes by the model's name."""
    pre, architecture = file.string(KEY + "pre", ""), file.string("general.architecture", "")
    name = file.string("general.name", "").lower()
    if any(n in pre for n in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        n in architecture for n in ("nomic-bert-moe", "jina-bert-v3")
    ):
        return frozenset(ids[t] for t in ("<mask>",) if t in ids), frozenset()
    if "phi-3" in name or "phi3" in name:
        special = control | {i for i, kind in enumerate(types) if kind == USER_DEFINED}
        kept = {ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
        return frozenset(), frozenset(special - kept)
    if "modern-bert" in name:
        return frozenset(ids[t] for t in ("[MASK]",) if t in ids), frozenset()
    return frozenset(), frozenset()
