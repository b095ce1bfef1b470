"""Encode text by byte-pair merges, for files with `tokenizer.ggml.model = "gpt2"`, using the `tokenizers` library.

The library gives the same ids as llama.cpp: both merge the pair of the lowest rank first, the leftmost of equals. They
differ only if a merged text is not a token. Such texts get ids of our own, beyond the vocabulary, and are spelled
letter by letter afterwards; letters without a token are dropped, as llama.cpp drops them.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from ..errors import GGUFError
from .pretokenizers import Pre
from .spm import SPACE


def byte_letters() -> list[str]:
    """Return GPT-2's letter for each of the 256 bytes: itself if printable in Latin-1, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


class BpeMerger:
    """Merges plain text to token ids.

    `pieces` maps the text of each token that may result to its id. The vocabulary has `n` ids. `merges` come best
    first; merges to a `forbidden` text, which is that of a control token, are left out."""

    def __init__(
        self, pieces: Mapping[str, int], n: int, merges: Iterable[tuple[str, str]], forbidden: Container[str], pre: Pre
    ) -> None:
        self.pieces, self.pre = pieces, pre
        letters = byte_letters() if pre.byte_level else [f"<0x{b:02X}>" for b in range(256)]
        missing = {letter for letter in letters if letter not in pieces}
        self.missing_bytes = len(missing)
        pairs = list(merges)
        # Nearly all merges join two tokens into a third. Only the few others need the checks below.
        odd = {(a, b) for a, b in pairs if a + b not in pieces or a not in pieces or b not in pieces}
        pairs = [pair for pair in pairs if pair not in odd or "".join(pair) not in forbidden]
        known = dict(pieces)
        for text in (*letters, *(text for a, b in pairs if (a, b) in odd for text in (a, b, a + b))):
            known.setdefault(text, n + len(known) - len(pieces))
        self.extra = {i: [] if text in missing else self.spell(text) for text, i in known.items() if i >= n}
        model = BPE(vocab=known, merges=pairs, byte_fallback=not pre.byte_level, ignore_merges=pre.whole_words)
        self.library = Tokenizer(model)
        self.library.pre_tokenizer = PreTokenizers(list(pre_tokenizers(pre)))

    def __call__(self, text: str) -> list[int]:
        """Encode plain text, which holds no special token."""
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
        """Encode `text` with the library, and spell the merged texts that are not tokens."""
        ids: list[int] = self.library.encode(text, add_special_tokens=False).ids
        if self.extra:
            return [j for i in ids for j in self.extra.get(i, (i,))]
        return ids

    def spell(self, text: str) -> list[int]:
        """Spell a merged text that is not a token in its letters or bytes."""
        letters = text if self.pre.byte_level else (f"<0x{b:02X}>" for b in text.encode())
        return [self.pieces[letter] for letter in letters if letter in self.pieces]


def split_merges(path: Path, merges: Iterable[str]) -> list[tuple[str, str]]:
    """Split the entries of `tokenizer.ggml.merges` into pairs, best first and without duplicates.

    The cut is the first space after an entry's first character. Raises GGUFError for an entry that is not two texts."""
    unique = dict.fromkeys(merges)
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge in unique if 0 < (cut := merge.find(" ", 1)) < len(merge) - 1]
    if len(pairs) < len(unique):
        bad = next(merge for merge in unique if not 0 < merge.find(" ", 1) < len(merge) - 1)
        raise GGUFError(path, "tokenizer.ggml.merges", f"holds {bad!r}, expected two texts with a space between")
    return pairs


def pre_tokenizers(pre: Pre) -> Iterator[PreTokenizer]:
    """Yield the library's form of each cut, then the spelling in byte letters."""
    for cut in pre.cuts:
        yield Split(Regex(cut.regex), cut.behavior)
    if pre.byte_level:
        yield ByteLevel(add_prefix_space=False, use_regex=False)
