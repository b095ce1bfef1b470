"""Byte-pair encoding, as files with `tokenizer.ggml.model = "gpt2"` need it. The `tokenizers` library cuts and merges.

Its merging gives llama.cpp's ids: both take the pair of the lowest rank, the leftmost of equals, and the ids differ only
where a text is no token. For those texts the library gets ids of our own, past the vocabulary, which are then read as
llama.cpp reads such a text: letter by letter, what has no token being left out.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from .errors import GGUFError
from .pretokenizers import Pre
from .tokenizer_spm import SPACE


def byte_letters() -> list[str]:
    """GPT-2's letter for each of the 256 bytes: itself where printable in Latin-1, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


class BpeMerger:
    """`pieces` text -> id of the tokens that text may become; `n` ids in all; `merges` best first. A merge to a text of
    `forbidden` (control tokens) is left out."""

    def __init__(
        self, pieces: Mapping[str, int], n: int, merges: Iterable[tuple[str, str]], forbidden: Container[str], pre: Pre
    ) -> None:
        self.pieces, self.n, self.pre = pieces, n, pre
        pairs = [(a, b) for a, b in merges if a + b not in forbidden]
        known = dict(pieces)
        letters = byte_letters() if pre.byte_level else [f"<0x{b:02X}>" for b in range(256)]
        self.missing_bytes = [b for b, letter in enumerate(letters) if letter not in pieces]
        for text in (*letters, *(text for a, b in pairs for text in (a, b, a + b))):
            known.setdefault(text, n + len(known) - len(pieces))
        self.extra = {i: [pieces[c] for c in text if c in pieces] for text, i in known.items() if i >= n}
        model = BPE(vocab=known, merges=pairs, byte_fallback=not pre.byte_level, ignore_merges=pre.whole_words)
        self.library = Tokenizer(model)
        self.library.pre_tokenizer = Steps(list(pre_tokenizers(pre)))

    def __call__(self, text: str) -> list[int]:
        """Ids of plain text."""
        if self.pre.spaces:
            text = text.replace(" ", SPACE)
        if not self.pre.whole_newlines:
            return self.merge(text)
        ids: list[int] = []
        for line in re.findall(r"[^\n]+|\n+", text):
            whole = self.pieces.get(line) if line[0] == "\n" else None
            ids += self.merge(line) if whole is None else [whole]
        return ids

    def merge(self, text: str) -> list[int]:
        ids: list[int] = self.library.encode(text, add_special_tokens=False).ids
        if self.extra and max(ids, default=0) >= self.n:
            return [j for i in ids for j in self.extra.get(i, (i,))]
        return ids


def split_merges(path: Path, merges: Iterable[str]) -> list[tuple[str, str]]:
    """Entries of `tokenizer.ggml.merges` as pairs, each once. The space between the two is the first that does not begin
    the entry. Raises GGUFError for an entry that is not two texts."""
    pairs: dict[tuple[str, str], None] = {}
    for i, merge in enumerate(merges):
        cut = merge.find(" ", 1)
        if cut < 0 or cut + 1 == len(merge):
            raise GGUFError(path, "tokenizer.ggml.merges", f"entry {i} is {merge!r}, expected two texts and a space")
        pairs[merge[:cut], merge[cut + 1 :]] = None
    return list(pairs)


def pre_tokenizers(pre: Pre) -> Iterator[PreTokenizer]:
    for step in pre.steps:
        yield Split(Regex(step.regex), step.behavior)
    if pre.byte_level:
        yield ByteLevel(add_prefix_space=False, use_regex=False)
