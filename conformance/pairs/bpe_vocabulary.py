"""Make a small byte-level BPE vocabulary: control tokens, letters for the 256 bytes, and whole words by merges."""

from collections.abc import Sequence

from llava_ref.tokenizer.bpe import byte_letters
from llava_ref.tokenizer.vocabulary import CONTROL, NORMAL

from .vocabulary import WORDS
from .writing import Metadata

SPACE, LINE = "Ġ", "Ċ"  # the letters of a space and of a line feed


def bpe_vocabulary(pre: str, first: Sequence[str], last: Sequence[str], template: str) -> Metadata:
    """Return the `tokenizer.` keys. `first` and `last`: control tokens before and behind all others.

    The first of `first` is BOS, the last of `last` EOS; no text begins with BOS by itself."""
    merges = [f"{LINE} {LINE}", *_merges()]
    made = [merge.replace(" ", "") for merge in merges]
    texts = [*first, *byte_letters(), *made, *last]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [CONTROL] * len(first) + [NORMAL] * (256 + len(made)) + [CONTROL] * len(last),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": len(texts) - 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template,
    }


def _merges() -> list[str]:
    """Return the merges that make each word, letter by letter, short beginnings first."""
    found = {(word[:n], word[n]) for word in (*WORDS, *(SPACE + word for word in WORDS)) for n in range(1, len(word))}
    return [f"{left} {right}" for left, right in sorted(found, key=lambda pair: (len(pair[0]), pair))]
