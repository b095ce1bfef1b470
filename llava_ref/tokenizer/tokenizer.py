"""Encode text as token ids and decode them, with the vocabulary of a GGUF file: SPM and byte-level BPE.

`encode` takes three steps: cut the special tokens out of the text, longest first; merge the plain text between them
(`spm`, `bpe`); join the ids. Plain text never becomes a control token. The differences from llama.cpp b10605 are
deliberate:

* merging never produces a control, unknown or byte token (llama.cpp's does if the merges lead there);
* `decode` does not tidy spaces before punctuation, so that decoding is the inverse of encoding;
* the space prefix of SPM is dropped at the start of the visible text, also after a hidden BOS;
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

MAX_CHARACTERS = 2_000_000  # of one text; the regex engine fails on runs a few times longer
BLANK = " \t\n\v\f\r"
SURROGATES = re.compile("[\ud800-\udfff]")


class Special(NamedTuple):
    """A token that `encode` searches the text for before merging."""

    text: str
    id: int
    control: bool


class Tokenizer:
    """The tokenizer of one model. `from_gguf` makes it; all attributes are read-only.

    bos_id, eos_id  None if the vocabulary has none
    end_ids         every token that ends a generation
    add_bos         texts start with BOS
    add_eos         texts end with EOS
    control_texts   texts of the tokens that users' text must never become
    chat_template   the file's own jinja source
    notes           warnings about this vocabulary for the user, one sentence each
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
        """Read the vocabulary of a file. Raises GGUFError, which names the key, if it is missing or malformed."""
        return cls(read_vocabulary(file), file.string("tokenizer.chat_template", None))

    def __repr__(self) -> str:
        kind = "SPM" if self.vocabulary.pre is None else "BPE"
        return f"<Tokenizer of {self.n_vocab:,} tokens, {kind}>"

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
        """Encode `text`. User-defined tokens in it always count as such, control tokens only with `special`.

        bos      put BOS first if the vocabulary asks for it (`add_bos`)
        quote    quotes the typed parts of `text`: control tokens are searched for in `text` as it is, everything else
                 is encoded unquoted
        prefix   SPM: put a space before a text that starts with plain text, if the vocabulary asks for it
        prefix_after_special  SPM: put a space also before plain text that follows a special token, control or
                 user-defined. llama.cpp b10605 does so; original LLaVA and Hugging Face do not

        Unpaired surrogates, which are not text, become U+FFFD. Raises PromptError for more than 2,000,000 characters.
        """
        if len(text) > MAX_CHARACTERS:
            raise PromptError("text", "length", f"{len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
        text = SURROGATES.sub("\ufffd", text)
        plain = quote.unquote(text) if quote else text
        ids = [self.bos_id] if bos and self.add_bos and self.bos_id is not None else []
        space = prefix
        for run in self._cut(text, plain, special):
            if isinstance(run, int):
                ids.append(run)
                space = prefix_after_special
            else:
                lead = " " if space and self.vocabulary.pre is None and self.vocabulary.add_space_prefix else ""
                ids += self._merge(lead + run)
        return ids

    def _cut(self, text: str, plain: str, special: bool) -> Iterator[int | str]:
        """Yield special tokens as ids, and the plain text between them. `text` and `plain` have the same length.

        A token takes each of its occurrences, from the left, that no longer token has taken."""
        taken = bytearray(len(text))
        cuts: list[tuple[int, int, int]] = []  # start, end, id
        for token in self._special:
            if token.control and not special:
                continue
            searched = text if token.control else plain
            start = searched.find(token.text)
            while start >= 0:
                end = start + len(token.text)
                if taken.find(1, start, end) >= 0:
                    start = searched.find(token.text, start + 1)
                    continue
                first, last = self._swallow(plain, taken, start, end, token.id)
                taken[first:last] = b"\1" * (last - first)
                cuts.append((first, last, token.id))
                start = searched.find(token.text, last)
        done = 0
        for first, last, token_id in sorted(cuts):
            if plain[done:first]:
                yield plain[done:first]
            yield token_id
            done = last
        if plain[done:]:
            yield plain[done:]

    def _swallow(self, plain: str, taken: bytearray, start: int, end: int, token_id: int) -> tuple[int, int]:
        """Widen the span start..end by the blanks that this token strips, as llama.cpp's lstrip and rstrip do."""
        if token_id in self.vocabulary.strip_left:
            while start > 0 and not taken[start - 1] and plain[start - 1] in BLANK:
                start -= 1
        if token_id in self.vocabulary.strip_right:
            while end < len(plain) and not taken[end] and plain[end] in BLANK:
                end += 1
        return start, end

    def text_of(self, token_id: int) -> str:
        """Return the text of a token as the file stores it."""
        return self.vocabulary.texts[self._checked(token_id)]

    def piece(self, token_id: int) -> str:
        """Decode a single token, with U+FFFD for bytes that are not UTF-8 on their own."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def label(self, token_id: int) -> str:
        """Return a text that tells a token from all others: its text in an answer, bytes that are no UTF-8 by
        themselves as `<0xE2>`, and the file's own text where it has none."""
        data = self.token_bytes(token_id)
        try:
            return data.decode("utf-8") or self.text_of(token_id)
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token in decoded text. A control token gives its own text, an unused token no bytes."""
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
        """Decode `ids`. Control tokens appear only with `special`; bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream(special=special)
        return "".join([*(stream.push(i) for i in ids), stream.flush()])

    def stream(self, *, special: bool = False, at_start: bool = True) -> "StreamDecoder":
        """Return a decoder that takes one token at a time; joined, its results equal `decode`.

        `at_start`: no text comes before these tokens."""
        return StreamDecoder(self, special, at_start)

    def _checked(self, token_id: int) -> int:
        """Return the id. Raises ParameterError unless the vocabulary has it."""
        if not 0 <= token_id < self.n_vocab:
            raise ParameterError("token id", str(token_id), f"expected a number from 0 to {self.n_vocab - 1}")
        return token_id


class StreamDecoder:
    """Decodes token by token, and holds back the first bytes of a character until it is complete."""

    def __init__(self, tokenizer: Tokenizer, special: bool, at_start: bool) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.at_start = at_start and tokenizer.vocabulary.add_space_prefix

    def push(self, token_id: int) -> str:
        """Take a token; return the text it completes, maybe empty. Raises ParameterError for an id out of range."""
        return self._utf8.decode(self.take(token_id))

    def take(self, token_id: int) -> bytes:
        """Take a token; return the bytes it adds to the text: none for a hidden control token, no SPM prefix."""
        data = self._tokenizer.token_bytes(token_id)
        if not self._special and token_id in self._tokenizer.vocabulary.control:
            return b""
        if self.at_start and data:
            data, self.at_start = data.removeprefix(b" "), False
        return data

    def flush(self) -> str:
        """End the text; return U+FFFD for a character that is still incomplete."""
        return self._utf8.decode(b"", final=True)


def specials(v: Vocabulary) -> list[Special]:
    """Return the tokens to search a text for, the longest in bytes first."""
    ids = [i for i, kind in enumerate(v.types) if kind == USER_DEFINED or i in v.control]
    tokens = [Special(v.texts[i], i, i in v.control) for i in ids]
    return sorted(tokens, key=lambda s: (-len(s.text.encode()), s.id))


def merger(v: Vocabulary) -> SpmMerger | BpeMerger:
    """Return the merger of plain text. Its pieces hold no control token, so no merge can make one."""
    pieces = {text: i for text, i in v.ids.items() if i not in v.control}
    if v.pre is not None:
        forbidden = {v.texts[i] for i in v.control}
        return BpeMerger(pieces, len(v.texts), split_merges(v.path, v.merges), forbidden, v.pre)
    byte_ids = [pieces.get(f"<0x{b:02X}>", pieces.get(chr(b)) if b < 0x80 else None) for b in range(256)]
    text_pieces = {text: i for text, i in pieces.items() if v.types[i] != BYTE}
    return SpmMerger(text_pieces, v.scores, byte_ids, v.unknown_id)
