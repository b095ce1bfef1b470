"""Read calls of functions out of an answer while it is generated: its text, and each call as it comes."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..chat.call_form import CallForm


@dataclass(slots=True)
class MadeCall:
    """A call in an answer. `arguments`: as much of the JSON as has come."""

    id: str
    name: str
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call begins: number `index` of the answer."""

    index: int
    call: MadeCall


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A further piece of the arguments of call number `index`."""

    index: int
    text: str


Said = str | CallBegun | CallArguments


class CallReader:
    """Reads one answer. Without a form all of it is text.

    `calls`: those that have begun; `text`: what was not part of a call."""

    def __init__(self, form: CallForm | None = None, names: Sequence[str] = ()) -> None:
        self.text, self.calls = "", list[MadeCall]()
        self._form, self._names = form, names
        self._held = ""
        self._read = self._free if form is None else self._words
        self._scan = _Object()

    @property
    def called(self) -> bool:
        """Return whether there are calls, and the last one is whole."""
        return bool(self.calls) and self._scan.complete

    def push(self, text: str) -> list[Said]:
        """Take text; return what is known of it now. The rest is held while it could begin a call."""
        self._held += text
        said: list[Said] = []
        while True:
            read, before = self._read, len(self._held)
            said += read()
            if self._read == read and len(self._held) == before:
                return said

    def flush(self) -> list[Said]:
        """End the answer: what is held is no call."""
        if self._read != self._words:
            return []
        self._read = self._free
        return self.push("")

    def _free(self) -> Iterator[Said]:
        yield from self._release(len(self._held))

    def _words(self) -> Iterator[Said]:
        """Look for the beginning of a call."""
        assert self._form is not None
        trigger, blanks = self._form.trigger, len(self._held) - len(self._held.lstrip())
        start = self._held.find(trigger) if trigger else blanks
        if start < 0:
            yield from self._release(len(self._held) - _overlap(self._held, trigger))
            return
        heads = {self._form.call(name): name for name in self._names}
        rest = self._held[start:]
        if head := next((head for head in heads if rest.startswith(head)), None):
            if self._held[:start].strip():
                yield from self._release(start)
            self._held = rest[len(head) :]
            yield self._begin(heads[head])
        elif any(head.startswith(rest) for head in heads):
            if self._held[:start].strip():
                yield from self._release(start)
        elif trigger:
            yield from self._release(start + 1)
        else:
            self._read = self._free

    def _begin(self, name: str) -> CallBegun:
        self.calls.append(MadeCall(uuid.uuid4().hex[:9], name))  # Mistral's templates insist on nine characters
        self._scan, self._read = _Object(), self._arguments
        return CallBegun(len(self.calls) - 1, self.calls[-1])

    def _arguments(self) -> Iterator[Said]:
        end = self._scan.end(self._held)
        piece, self._held = self._held[:end], self._held[end:]
        if piece:
            self.calls[-1].arguments += piece
            yield CallArguments(len(self.calls) - 1, piece)
        if self._scan.complete:
            self._read = self._behind

    def _behind(self) -> Iterator[Said]:
        """Look for another call behind one; whatever else is there closes the form."""
        assert self._form is not None
        joint, between = self._form.joint, self._form.between
        heads = {} if joint is None else {joint + name + between: name for name in self._names}
        head = next((head for head in heads if self._held.startswith(head)), None)
        if head is not None:
            self._held = self._held[len(head) :]
            yield self._begin(heads[head])

    def _release(self, end: int) -> Iterator[str]:
        text, self._held = self._held[:end], self._held[end:]
        if text:
            self.text += text
            yield text


def _overlap(text: str, start: str) -> int:
    """Return how many characters at the end of `text` could be the beginning of `start`."""
    return next((n for n in range(min(len(text), len(start) - 1), 0, -1) if start.startswith(text[-n:])), 0)


class _Object:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self.complete = False
        self._depth, self._quoted, self._escaped = 0, False, False

    def end(self, piece: str) -> int:
        """Return how many characters of a piece belong to the object."""
        for i, c in enumerate(piece):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = c == "\\", c != '"'
            elif c == '"':
                self._quoted = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if not self._depth:
                    self.complete = True
                    return i + 1
        return len(piece)
