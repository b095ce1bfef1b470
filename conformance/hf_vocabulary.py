"""Token ids of a prompt by transformers' own LlamaTokenizer, made from an SPM vocabulary in a GGUF file.

The merges come of the pieces' scores, as transformers' converter of sentencepiece models has them. A byte-level BPE
vocabulary of a GGUF file names its rule for cutting text and does not hold it, so there this project's tokenizer
answers, under profile hf.
"""

from collections.abc import Sequence
from typing import Any

from llava_ref.gguf import GGUFFile
from llava_ref.profiles import PROFILES
from llava_ref.prompt import TextChunk, chunks, raw
from llava_ref.tokenizer import Tokenizer
from llava_ref.vocabulary import NORMAL, USER_DEFINED, Vocabulary, read_vocabulary

IMAGE = "<image>"
THEIRS = "transformers' LlamaTokenizer, made from the GGUF file's pieces and scores"
OURS = "this project's tokenizer under profile hf, not transformers': it has none for a GGUF file's byte-level BPE"


def token_ids(file: GGUFFile, prompt: str, image_token: int, n_rows: int) -> tuple[list[int], str]:
    """Ids of a prompt, `image_token` as often as a picture has rows; and whose tokenizer made them.

    BOS comes first if the vocabulary asks for it and the prompt does not begin with it already."""
    vocabulary = read_vocabulary(file)
    if vocabulary.pre is not None:
        return _ours(file, prompt, image_token, n_rows), OURS
    tokenizer = _tokenizer(vocabulary)
    bos = vocabulary.add_bos and not prompt.startswith(vocabulary.texts[vocabulary.bos_id or 0])
    ids: Sequence[int] = tokenizer(prompt, add_special_tokens=bos)["input_ids"]
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    return [token for i in ids for token in ([image_token] * n_rows if i == image else [i])], THEIRS


def _tokenizer(v: Vocabulary) -> Any:
    from transformers import AddedToken, LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    scores = {text: v.scores[i] for text, i in v.ids.items() if v.types[i] == NORMAL}
    named = {name: v.texts[i] for name, i in (("bos_token", v.bos_id), ("eos_token", v.eos_id)) if i is not None}
    tokenizer: Any = LlamaTokenizer(
        vocab=dict(v.ids),
        merges=generate_merges({text: v.ids[text] for text in scores}, scores),
        unk_token="<unk>" if v.unknown_id is None else v.texts[v.unknown_id],
        add_bos_token=v.add_bos,
        add_eos_token=v.add_eos,
        add_prefix_space=v.add_space_prefix,
        **named,
    )
    for i, text in enumerate(v.texts):
        if i in v.control or v.types[i] == USER_DEFINED:
            strips = {"lstrip": i in v.strip_left, "rstrip": i in v.strip_right}
            tokenizer.add_tokens([AddedToken(text, special=i in v.control, normalized=False, **strips)])
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    return tokenizer


def _ours(file: GGUFFile, prompt: str, image_token: int, n_rows: int) -> list[int]:
    tokenizer, ids = Tokenizer.from_gguf(file), list[int]()
    for chunk in chunks(raw(prompt, prompt.count(IMAGE), tokenizer), tokenizer, PROFILES["hf"]):
        ids += chunk.token_ids if isinstance(chunk, TextChunk) else [image_token] * n_rows
    return ids
