"""Token ids <-> text, from the vocabulary in a GGUF file: SPM and byte-level BPE.

`encode` goes in three steps: special tokens are cut out of the text, longest first; the plain text between them is
merged (`tokenizer_spm`, `tokenizer_bpe`); ids are put together. Plain text never becomes a control token.
Differences from llama.cpp b10605, all on purpose:

* merging cannot produce a control, unknown or byte token (llama.cpp can, where the merges lead there);
* `decode` does not tidy spaces before punctuation, so that decoding is the inverse of encoding;
* the space that a text starts with for SPM is dropped at the start of the visible text, also after a hidden BOS;
* a BPE token with letters outside the byte alphabet decodes to its own text.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import ParameterError, PromptError
from ..gguf.file import GGUFFile
from .bpe import BpeMerger, byte_letters, split_merges
from .quote import Quote
from .spm import SPACE, SpmMerger
from .vocabulary import BYTE, NORMAL, USER_DEFINED, Vocabulary, read_vocabulary

MAX_CHARACTERS = 2_000_000  # in one text; the regex engine gives up on runs a few times longer
BLANK = " \t\n\v\f\r"
SURROGATES = re.compile("[\ud800-\udfff]")


class Special(NamedTuple):
    """A token that is looked for in text before merging."""

    text: str
    id: int
    control: bool


class Tokenizer:
    """Made by `from_gguf`. All attributes are read-only.

    bos_id, eos_id  None where the vocabulary has none
    end_ids         every token that ends a generation
    add_bos         texts start with BOS; add_eos: and end with EOS
    control_texts   texts of the tokens that users' text must not become
    chat_template   the file's own jinja source
    notes           what a user should know about this vocabulary, one sentence each
    """

    def __init__(self, vocabulary: Vocabulary, chat_template: str | None = None) -> None:
        v = self.vocabulary = vocabulary
        self.bos_id, self.eos_id, self.end_ids = v.bos_id, v.eos_id, v.end_ids
        self.add_bos, self.add_eos = v.add_bos, v.add_eos
        self.n_vocab = len(v.texts)
        self.control_texts = tuple(v.texts[i] for i in sorted(v.control))
        self.chat_template = chat_template
        self._special = specials(v)
        self._merge = merger(v)
        lost = self._merge.missing_bytes if isinstance(self._merge, BpeMerger) else 0
        self.notes = v.notes + ((f"{lost} of 256 bytes have no token: text loses them",) if lost else ())
        self._letters = {letter: b for b, letter in enumerate(byte_letters())}

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> "Tokenizer":
        """Raises GGUFError, naming the key, for a vocabulary that is missing, malformed or of an unknown kind."""
        return cls(read_vocabulary(file), file.string("tokenizer.chat_template", None))

    def encode(
        self,
        text: str,
        *,
        special: bool = True,
        bos: bool = False,
        quote: Quote | None = None,
        prefix: bool = True,
        prefix_after_special: bool = False,
    ) -> list[int]:
        """Ids of `text`. User-defined tokens are always looked for, control tokens only with `special`.

        bos      put BOS first if the vocabulary asks for it (`add_bos`)
        quote    parts of `text` are quoted with it: control tokens are looked for in `text` as it is, all else in what
                 it quotes
        prefix   SPM: a space goes before a text that starts with plain text, if the vocabulary asks for it
        prefix_after_special  SPM: a space also before plain text that follows a special token, control or
                 user-defined. llama.cpp b10605 does so; original LLaVA and Hugging Face do not

        Unpaired surrogates, which are not text, count as U+FFFD. Raises PromptError for more than 2,000,000 characters.
        """
        if len(text) > MAX_CHARACTERS:
            raise PromptError("text", "length", f"{len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
        text = SURROGATES.sub("\ufffd", text)
        plain = quote.unquote(text) if quote else text
        ids = [self.bos_id] if bos and self.add_bos and self.bos_id is not None else []
        space = prefix
        for part in self._cut(text, plain, special):
            if isinstance(part, int):
                ids.append(part)
                space = prefix_after_special
            else:
                lead = " " if space and self.vocabulary.pre is None and self.vocabulary.add_space_prefix else ""
                ids += self._merge(lead + part)
        return ids

    def _cut(self, text: str, plain: str, special: bool) -> Iterator[int | str]:
        """Special tokens as ids, and the plain text between them. `text` and `plain` have the same length.

        A token takes every place it finds, from the left, that no longer one has taken."""
        taken = bytearray(len(text))
        cuts: list[tuple[int, int, int]] = []  # start, end, id
        for token in self._special:
            if token.control and not special:
                continue
            where = text if token.control else plain
            start = where.find(token.text)
            while start >= 0:
                end = start + len(token.text)
                if taken.find(1, start, end) >= 0:
                    start = where.find(token.text, start + 1)
                    continue
                first, last = self._swallow(plain, taken, start, end, token.id)
                taken[first:last] = b"\1" * (last - first)
                cuts.append((first, last, token.id))
                start = where.find(token.text, last)
        done = 0
        for first, last, token_id in sorted(cuts):
            if plain[done:first]:
                yield plain[done:first]
            yield token_id
            done = last
        if plain[done:]:
            yield plain[done:]

    def _swallow(self, plain: str, taken: bytearray, start: int, end: int, token_id: int) -> tuple[int, int]:
        """The span widened over the blanks that this token swallows."""
        if token_id in self.vocabulary.strip_left:
            while start > 0 and not taken[start - 1] and plain[start - 1] in BLANK:
                start -= 1
        if token_id in self.vocabulary.strip_right:
            while end < len(plain) and not taken[end] and plain[end] in BLANK:
                end += 1
        return start, end

    def text_of(self, token_id: int) -> str:
        """The piece as the file stores it."""
        return self.vocabulary.texts[self._checked(token_id)]

    def piece(self, token_id: int) -> str:
        """What a token shows by itself; U+FFFD for bytes that are no text without their neighbours."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for in text, a control token's its own text. Unused tokens stand for none."""
        v, text = self.vocabulary, self.text_of(token_id)
        kind = v.types[token_id]
        if token_id in v.control or kind == USER_DEFINED:
            return text.encode()
        if kind == BYTE:
            return bytes([int(text[3:5], 16)])
        if kind != NORMAL:
            return b""
        if v.pre is None or v.pre.spaces:
            return text.replace(SPACE, " ").encode()
        if v.pre.byte_level and all(c in self._letters for c in text):
            return bytes(self._letters[c] for c in text)
        return text.encode()

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`; control tokens appear with `special` only. Bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream(special=special)
        return "".join([*(stream.push(i) for i in ids), stream.flush()])

    def stream(self, *, special: bool = False, at_start: bool = True) -> "StreamDecoder":
        """Decodes token by token; the pieces joined are what `decode` gives. `at_start`: no text stands before."""
        return StreamDecoder(self, special, at_start)

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < self.n_vocab:
            raise ParameterError("token id", str(token_id), f"expected a number from 0 to {self.n_vocab - 1}")
        return token_id


class StreamDecoder:
    """Holds back the first bytes of a character until the rest has come."""

    def __init__(self, tokenizer: Tokenizer, special: bool, at_start: bool) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.at_start = at_start and tokenizer.vocabulary.add_space_prefix

    def push(self, token_id: int) -> str:
        """The text that is complete with this token, perhaps none. Raises ParameterError for an id out of range."""
        return self._utf8.decode(self.take(token_id))

    def take(self, token_id: int) -> bytes:
        """The bytes that this token adds to the text, which are its own but for a hidden space or control token."""
        data = self._tokenizer.token_bytes(token_id)
        if not self._special and token_id in self._tokenizer.vocabulary.control:
            return b""
        if self.at_start and data:
            data, self.at_start = data.removeprefix(b" "), False
        return data

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was cut short."""
        return self._utf8.decode(b"", final=True)


def specials(v: Vocabulary) -> list[Special]:
    """The tokens to look for, the longest in bytes first."""
    found = [
        Special(v.texts[i], i, i in v.control) for i, t in enumerate(v.types) if t == USER_DEFINED or i in v.control
    ]
    return sorted(found, key=lambda s: (-len(s.text.encode()), s.id))


def merger(v: Vocabulary) -> SpmMerger | BpeMerger:
    """What turns plain text to ids. No control token is among its pieces, so none can come of a merge."""
    pieces = {text: i for text, i in v.ids.items() if i not in v.control}
    if v.pre is not None:
        forbidden = {v.texts[i] for i in v.control}
        return BpeMerger(pieces, len(v.texts), split_merges(v.path, v.merges), forbidden, v.pre)
    byte_ids = [pieces.get(f"<0x{b:02X}>", pieces.get(chr(b)) if b < 0x80 else None) for b in range(256)]
    text_pieces = {text: i for text, i in pieces.items() if v.types[i] != BYTE}
    return SpmMerger(text_pieces, v.scores, byte_ids, v.unknown_id)
