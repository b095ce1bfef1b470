"""Tokenise a prompt with transformers' own LlamaTokenizer, made from an SPM vocabulary in a GGUF file.

The merges are made from the pieces' scores, as transformers' converter of sentencepiece models makes them. A GGUF file
with a byte-level BPE vocabulary names its rule for cutting text and does not hold it, so this project's tokenizer
answers for such a file, under profile hf.
"""

from collections.abc import Sequence
from typing import Any

from llava_ref.chat.chunks import TextChunk, chunks, raw
from llava_ref.gguf.file import GGUFFile
from llava_ref.profiles import PROFILES
from llava_ref.tokenizer.tokenizer import Tokenizer
from llava_ref.tokenizer.vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, read_vocabulary

IMAGE, KEY = "<image>", "tokenizer.ggml."
SPECIAL = {"unk": 0, "bos": 1, "eos": 2}  # and their ids where the file has none
THEIRS = "transformers' LlamaTokenizer, made from the GGUF file's pieces and scores"
OURS = "this project's tokenizer under profile hf, not transformers': it has none for a GGUF file's byte-level BPE"


def token_ids(file: GGUFFile, prompt: str, image_token: int, n_rows: Sequence[int]) -> tuple[list[int], str]:
    """Return the ids of a prompt, `image_token` as often as each picture has rows, and whose tokenizer made them.

    BOS comes first if the vocabulary asks for it and the prompt does not begin with it already."""
    if file.get(KEY + "model") != "llama":
        return _ours(file, prompt, image_token, n_rows), OURS
    tokenizer = _tokenizer(file)
    bos = tokenizer.add_bos_token and not prompt.startswith(tokenizer.bos_token or "\0")
    ids: Sequence[int] = tokenizer(prompt)["input_ids"]
    if tokenizer.add_bos_token and not bos:
        ids = ids[1:]
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    rows = iter(n_rows)
    return [token for i in ids for token in ([image_token] * next(rows) if i == image else [i])], THEIRS


def _tokenizer(file: GGUFFile) -> Any:
    """Make transformers' tokenizer as the file's keys say. The tokens that swallow blanks depend on the model's name,
    as in llama.cpp, because no key says it."""
    from transformers import AddedToken, LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    texts, kinds = file[KEY + "tokens"], file.get(KEY + "token_type")
    kinds, ids = kinds or [NORMAL] * len(texts), {text: i for i, text in enumerate(texts)}
    rows = zip(texts, file[KEY + "scores"], kinds, strict=False)
    scores = {text: score for text, score, kind in rows if kind == NORMAL}
    named = {f"{name}_token": texts[_special(file, name, i, len(texts))] for name, i in SPECIAL.items()}
    tokenizer: Any = LlamaTokenizer(
        vocab=dict(ids),
        merges=generate_merges({text: ids[text] for text in scores}, scores),
        add_bos_token=file.get(KEY + "add_bos_token", True),
        add_eos_token=file.get(KEY + "add_eos_token", False),
        add_prefix_space=file.get(KEY + "add_space_prefix", True),
        **named,
    )
    v = read_vocabulary(file)
    for i, text in enumerate(texts):
        if kinds[i] in (UNKNOWN, CONTROL, USER_DEFINED):
            strips = {"lstrip": i in v.strip_left, "rstrip": i in v.strip_right}
            tokenizer.add_tokens([AddedToken(text, special=kinds[i] != USER_DEFINED, normalized=False, **strips)])
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    return tokenizer


def _special(file: GGUFFile, name: str, default: int, n: int) -> int:
    """Return the id of a special token; an id out of range counts as absent."""
    key = KEY + {"unk": "unknown"}.get(name, name) + "_token_id"
    found = int(file.get(key, default))
    return found if 0 <= found < n else default


def _ours(file: GGUFFile, prompt: str, image_token: int, n_rows: Sequence[int]) -> list[int]:
    tokenizer, ids = Tokenizer.from_gguf(file), list[int]()
    for chunk in chunks(raw(prompt, prompt.count(IMAGE), tokenizer), tokenizer, PROFILES["hf"]):
        ids += chunk.token_ids if isinstance(chunk, TextChunk) else [image_token] * n_rows[chunk.index]
    return ids
