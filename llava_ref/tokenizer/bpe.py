"""Byte-pair encoding, as files with `tokenizer.ggml.model = "gpt2"` need it. The `tokenizers` library cuts and merges.

Its merging gives llama.cpp's ids: both take the pair of the lowest rank, the leftmost of equals. They part only where a
merged text is no token, so the library gets ids of our own for such texts, past the vocabulary. These are then read
letter by letter, and letters without a token are left out, as llama.cpp leaves them out.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from ..errors import GGUFError
from .pretokenizers import Pre
from .spm import SPACE


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
        self.pieces, self.pre = pieces, pre
        letters = byte_letters() if pre.byte_level else [f"<0x{b:02X}>" for b in range(256)]
        missing = {letter for letter in letters if letter not in pieces}
        self.missing_bytes = len(missing)
        pairs = list(merges)
        # Nearly all merges join two tokens into a third: the few others are looked at one by one.
        odd = {(a, b) for a, b in pairs if a + b not in pieces or a not in pieces or b not in pieces}
        pairs = [pair for pair in pairs if pair not in odd or "".join(pair) not in forbidden]
        known = dict(pieces)
        for text in (*letters, *(text for a, b in pairs if (a, b) in odd for text in (a, b, a + b))):
            known.setdefault(text, n + len(known) - len(pieces))
        self.extra = {i: [] if text in missing else self.spell(text) for text, i in known.items() if i >= n}
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
        if self.extra:
            return [j for i in ids for j in self.extra.get(i, (i,))]
        return ids

    def spell(self, text: str) -> list[int]:
        """A merged text that is no token, by its letters or bytes."""
        units = text if self.pre.byte_level else (f"<0x{b:02X}>" for b in text.encode())
        return [self.pieces[unit] for unit in units if unit in self.pieces]


def split_merges(path: Path, merges: Iterable[str]) -> list[tuple[str, str]]:
    """Entries of `tokenizer.ggml.merges` as pairs, each once, best first, cut at the first space after the entry's
    first character. Raises GGUFError for an entry that is not two texts."""
    unique = dict.fromkeys(merges)
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge in unique if 0 < (cut := merge.find(" ", 1)) < len(merge) - 1]
    if len(pairs) < len(unique):
        bad = next(merge for merge in unique if not 0 < merge.find(" ", 1) < len(merge) - 1)
        raise GGUFError(path, "tokenizer.ggml.merges", f"holds {bad!r}, expected two texts with a space between")
    return pairs


def pre_tokenizers(pre: Pre) -> Iterator[PreTokenizer]:
    for step in pre.steps:
        yield Split(Regex(step.regex), step.behavior)
    if pre.byte_level:
        yield ByteLevel(add_prefix_space=False, use_regex=False)
