"""Tokens -> what each adds to the text they make, so that their texts, joined, are exactly that text.

A token that ends inside a character adds nothing, and the one that completes the character adds all of it. What is not
in the text adds nothing: BOS, the space that SPM puts before a text, a control token that is not shown. What the tokens
do not have goes to the token before it: blanks that a control token swallowed, characters that a vocabulary loses.
"""

import codecs
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, takewhile

from ..tokenizer.spm import SPACE
from ..tokenizer.tokenizer import Tokenizer
from .request import Step
from .scores import Score


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of an answer, in its place."""

    token_id: int
    text: str
    """What it adds to the answer's text."""
    data: bytes
    """Its bytes in that text: those of all tokens, joined, are the text in UTF-8, U+FFFD where they are none."""
    score: Score | None
    first: bool
    """Nothing stands before it, so that an SPM token's space is hidden here."""
    ended: bool = False
    """It ended the answer and is none of its text: an end-of-generation token, a token of a stop string."""


def prompt_pieces(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[str]:
    """Return what each token adds to `text`, which they are the tokens of."""
    v = tokenizer.vocabulary
    spaced = v.pre is None or v.pre.spaces
    data = (text.replace(SPACE, " ") if spaced else text).encode("utf-8", "replace")
    ends = list(accumulate(len(c.encode("utf-8", "replace")) if c != SPACE or not spaced else 1 for c in text))
    starts = [bisect_right(ends, start) for start in _starts(tokenizer, data, ends, ids)]
    return [text[start:end] for start, end in pairwise([0, *starts[1:], len(text)])] if ids else []


def _starts(tokenizer: Tokenizer, data: bytes, ends: Sequence[int], ids: Sequence[int]) -> Iterator[int]:
    """Yield the byte of a text at which each of its tokens begins; `ends` are its characters' ends."""
    at = 0
    for token in ids:
        piece = tokenizer.token_bytes(token)
        bare = piece.removeprefix(b" ")
        if data.startswith(piece, at):
            begin, end = at, at + len(piece)
        elif data.startswith(bare, at):  # SPM's space before a text
            begin, end = at, at + len(bare)
        elif token == tokenizer.vocabulary.unknown_id:
            begin, end = at, ends[bisect_right(ends, at)] if at < len(data) else at
        elif token in tokenizer.vocabulary.control:  # BOS, put before the text
            begin = end = at
        else:  # something before it has no token
            found = [(i, len(p)) for p in (piece, bare) if (i := data.find(p, at)) >= 0]
            begin, size = min(found, default=(at, 0))
            end = begin + size
        yield begin
        at = end


def id_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return what each of `ids` adds to `decode(ids, special=True)`."""
    stream = tokenizer.stream(special=True)
    pieces = [stream.push(token) for token in ids]
    return [*pieces[:-1], pieces[-1] + stream.flush()] if pieces else []


@dataclass(slots=True)
class _Waiting:
    piece: Piece
    counts: list[int]
    """Characters of its text that are complete with each of its bytes."""
    open: bool
    """It ends inside a character."""

    def cut(self, length: int) -> Piece:
        """Return the piece with at most `length` characters of its text."""
        if length >= len(self.piece.text):
            return self.piece
        size = bisect_left(self.counts, length) + (length in self.counts) if length else 0
        return replace(self.piece, text=self.piece.text[:length], data=self.piece.data[:size])


class AnswerPieces:
    """The steps of an answer -> its pieces, each as soon as it is known how much of it is shown.

    `at_start`: the answer stands by itself, and does not go on in the middle of a text."""

    def __init__(self, tokenizer: Tokenizer, *, at_start: bool = True) -> None:
        self._tokenizer, self._stream = tokenizer, tokenizer.stream(at_start=at_start)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._waiting: list[_Waiting] = []
        self._room = 0  # characters shown that no settled piece has

    def push(self, step: Step) -> list[Piece]:
        """Return the pieces that are settled with this step, at the last step all."""
        first, ended = self._stream.at_start, step.token_id in self._tokenizer.end_ids
        data = b"" if ended else self._stream.take(step.token_id)
        texts = [self._utf8.decode(bytes([byte])) for byte in data]
        piece = Piece(step.token_id, "".join(texts), data, step.score, first, ended)
        self._waiting.append(_Waiting(piece, list(accumulate(map(len, texts))), self._utf8.getstate()[0] != b""))
        self._room += len(step.text)
        return list(self._settled() if step.finish_reason is None else self._last())

    def _settled(self) -> Iterator[Piece]:
        """Yield the tokens up to the last one whose text, and that of all before it, is whole and shown."""
        shown = takewhile(lambda end: end <= self._room, accumulate(len(w.piece.text) for w in self._waiting))
        ends = [0, *(end if w.piece.text and not w.open else 0 for w, end in zip(self._waiting, shown, strict=False))]
        count = ends.index(max(ends))
        self._room -= ends[count]
        yield from (w.piece for w in self._waiting[:count])
        del self._waiting[:count]

    def _last(self) -> Iterator[Piece]:
        """Yield all that are left, cut where a stop string begins."""
        self._close_character()
        stopped = sum(len(w.piece.text) for w in self._waiting) > self._room
        for i, waiting in enumerate(self._waiting):
            rest = any(w.piece.text for w in self._waiting[i:])
            if stopped and not (self._room and rest):
                yield replace(waiting.piece, text="", data=b"", ended=True)
            else:
                yield waiting.cut(self._room)
            self._room -= min(self._room, len(waiting.piece.text))

    def _close_character(self) -> None:
        """Give the U+FFFD of a character that was cut short to the last token that has bytes of it."""
        tail = self._utf8.decode(b"", final=True)
        if tail:
            waiting = next(w for w in reversed(self._waiting) if w.piece.data)
            waiting.piece = replace(waiting.piece, text=waiting.piece.text + tail)
            waiting.counts[-1] += len(tail)
