"""Define `Marked`: text with the origin of each of its characters."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

TEMPLATE, UNKNOWN, STRUCTURE = "\0", "\1", "\2"
FIRST = 3  # the mark of text number n is chr(FIRST + n)
NUMBERS = (int, float, complex, type(None))
NOT_TEXT = (  # methods of str whose results contain no character of the text
    "count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable "
    "isspace istitle isupper rfind rindex startswith"
).split()
SPEC = re.compile(r"(?:(?P<fill>.)?(?P<align>[<>^]))?(?P<width>[1-9]\d*)?(?:\.(?P<size>\d+))?s?", re.DOTALL)


class Untracked(Exception):
    """Raised for an operation on a user's text whose result cannot carry marks."""


class Marked(str):
    """A str with the origin of each character: `_marks` is a str of the same length.

    The methods return what those of str do, with marks."""

    __slots__ = ("_marks",)
    _marks: str

    def __new__(cls, text: str, marks: str) -> "Marked":
        self = super().__new__(cls, text)
        if len(self) != len(marks):
            raise Untracked(f"{len(self)} characters came of {len(marks)}")
        self._marks = marks
        return self

    def __str__(self) -> str:
        return self

    def __iter__(self) -> Iterator[str]:
        return map(Marked, plain(self), self._marks)

    def __getitem__(self, key: SupportsIndex | slice) -> "Marked":
        return Marked(str.__getitem__(self, key), self._marks[key])

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, n: SupportsIndex) -> "Marked":
        return Marked(str.__mul__(self, n), self._marks * n)

    __rmul__ = __mul__

    # the environment calls `formatting.percent` instead, which keeps marks
    def __mod__(self, values: Any) -> str:
        return unknown(str.__mod__(self, values))

    def __rmod__(self, form: str) -> str:
        return unknown(str.__mod__(form, self)) if isinstance(form, str) else NotImplemented

    def __format__(self, spec: str) -> str:
        text, fields = str.__format__(plain(self), spec), SPEC.fullmatch(spec)
        return unknown(text) if fields is None else padded(text, self, fields["size"], fields["align"] or "<")

    def join(self, items: Iterable[str]) -> str:
        texts = list(items)
        str.join(self, texts)  # raises TypeError if one is not a text
        return joined(text for item in texts for text in (self, item))[len(self) if texts else 0 :]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(plain(self), sep, maxsplit), 0 if sep is None else len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(plain(self), sep, maxsplit), 0 if sep is None else len(sep))

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = str.splitlines(plain(self), keepends=True)
        kept = str.splitlines(plain(self), keepends)
        return [line[: len(short)] for line, short in zip(self._located(lines, 0), kept, strict=True)]

    def partition(self, sep: str) -> tuple[str, str, str]:
        return tuple(self._located(str.partition(plain(self), sep), 0))  # type: ignore[return-value]

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        return tuple(self._located(str.rpartition(plain(self), sep), 0))  # type: ignore[return-value]

    def _located(self, texts: Iterable[str], gap: int) -> list[str]:
        """Mark `texts`, which follow each other in this one with only white space or `gap` characters between them."""
        out: list[str] = []
        start = 0
        for text in texts:
            start = str.find(self, text, start)
            out.append(self[start : start + len(text)])
            start += len(text) + gap
        return out

    def strip(self, chars: str | None = None) -> "Marked":
        start = len(self) - len(str.lstrip(self, chars))
        return self[start : start + len(str.strip(self, chars))]

    def lstrip(self, chars: str | None = None) -> "Marked":
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None) -> "Marked":
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str) -> "Marked":
        return self[len(prefix) :] if str.startswith(self, prefix) else self

    def removesuffix(self, suffix: str) -> "Marked":
        return self[: len(str.removesuffix(self, suffix))]

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if old:
            return marked(new).join(self.split(old, count))
        n = len(str.replace(self, "", "x", count)) - len(self)
        out = [text for i, c in enumerate(self) for text in ([new, c] if i < n else [c])]
        return joined([*out, *[new] * (n > len(self))])

    def lower(self) -> str:
        return self._cased(str.lower(self), str.lower)

    def upper(self) -> str:
        return self._cased(str.upper(self), str.upper)

    def casefold(self) -> str:
        return self._cased(str.casefold(self), str.casefold)

    def swapcase(self) -> str:
        return self._cased(str.swapcase(self), str.swapcase)

    def title(self) -> str:
        return self._cased(str.title(self), str.title)

    def capitalize(self) -> str:
        return self._cased(str.capitalize(self), str.lower)

    def _cased(self, text: str, change: Callable[[str], str]) -> str:
        """Mark `text`, this one in another case. Some letters become several (ß, SS); none disappears."""
        if len(text) == len(self):
            return Marked(text, self._marks)
        marks = "".join(mark * len(change(c)) for c, mark in zip(plain(self), self._marks, strict=True))
        return Marked(text, marks) if len(marks) == len(text) else unknown(text)

    def center(self, width: SupportsIndex, fill: str = " ") -> str:
        padding = len(str.center(self, width, fill)) - len(self)
        left = padding // 2 + (padding & int(width) & 1)
        return joined((fill * left, self, fill * (padding - left)))

    def ljust(self, width: SupportsIndex, fill: str = " ") -> str:
        return joined((self, fill * (len(str.ljust(self, width, fill)) - len(self))))

    def rjust(self, width: SupportsIndex, fill: str = " ") -> str:
        return joined((fill * (len(str.rjust(self, width, fill)) - len(self)), self))

    def zfill(self, width: SupportsIndex) -> str:
        sign = self[:1] if str.startswith(self, ("+", "-")) else ""
        return joined((sign, "0" * (len(str.zfill(self, width)) - len(self)), self[len(sign) :]))

    def expandtabs(self, tabsize: SupportsIndex = 8) -> str:
        out: list[str] = []
        for line in self.splitlines(keepends=True):
            column = 0
            for c in line:
                size = len(str.expandtabs(" " * column + c, tabsize)) - column if c == "\t" else 1
                out.append(" " * size if c == "\t" else c)
                column += size
        text = joined(out)
        return text if text == str.expandtabs(self, tabsize) else unknown(str.expandtabs(self, tabsize))


def _untracked(name: str) -> Callable[..., Any]:
    """Return a method of str whose results are of unknown origin."""
    method = getattr(str, name)

    def call(self: Marked, *args: Any, **options: Any) -> Any:
        result = method(plain(self), *args, **options)
        return unknown(result) if tainted([self, *args, *options.values()]) else result

    call.__name__ = name
    return call


for _name in dir(str):
    if not _name.startswith("_") and _name not in (*vars(Marked), *NOT_TEXT, "format", "format_map", "maketrans"):
        setattr(Marked, _name, _untracked(_name))  # also a method that a later Python adds


plain = str.__str__


def marked(text: str) -> Marked:
    """Return `text` as Marked. Text without marks is the template's own."""
    return text if isinstance(text, Marked) else Marked(text, TEMPLATE * len(text))


def marks_of(text: str) -> str:
    """Return the marks of a text, Marked or not."""
    return text._marks if isinstance(text, Marked) else TEMPLATE * len(text)


def joined(texts: Iterable[str]) -> str:
    """Concatenate texts and their marks."""
    texts = list(texts)
    text = "".join(texts)
    if not any(isinstance(x, Marked) for x in texts):
        return text
    return Marked(text, "".join(map(marks_of, texts)))


def unknown(value: Any) -> Any:
    """Mark all text in `value`, which no operation tracked, as of unknown origin. Raises Untracked for bytes."""
    if isinstance(value, str):
        return Marked(value, UNKNOWN * len(value))
    if isinstance(value, list | tuple):
        return type(value)(map(unknown, value))
    if isinstance(value, bytes):
        raise Untracked("bytes were made of it")
    return value


def tainted(value: Any) -> bool:
    """Say whether `value` contains text that is not the template's own."""
    if isinstance(value, Marked):
        return bool(value._marks.strip(TEMPLATE))
    if isinstance(value, Mapping):
        return any(tainted(x) for item in value.items() for x in item)
    return isinstance(value, list | tuple | set | frozenset) and any(map(tainted, value))


def text_of(value: Any) -> str:
    """Return `str(value)`. A printed list or object with a user's text in it is of unknown origin."""
    if isinstance(value, str):
        return value
    text = str(value)
    known = (
        isinstance(value, NUMBERS) or isinstance(value, list | tuple | set | frozenset | dict) and not tainted(value)
    )
    return text if known else unknown(text)


def respelt(text: str, pattern: re.Pattern[str], spell: Callable[[str], str]) -> str:
    """Replace each character that matches `pattern` by its `spell`ing, under the mark of the character."""
    if not isinstance(text, Marked):
        return pattern.sub(lambda match: spell(match[0]), text)
    out: list[str] = []
    end = 0
    for match in pattern.finditer(plain(text)):
        spelt = spell(match[0])
        out += [text[end : match.start()], Marked(spelt, text._marks[match.start()] * len(spelt))]
        end = match.end()
    return joined([*out, text[end:]])


def padded(result: str, text: str, size: str | None, align: str) -> str:
    """Mark `result`, which is `text` cut to `size` and padded."""
    kept = text if size is None else text[: int(size or 0)]
    padding = len(result) - len(kept)
    left = {"<": 0, ">": padding, "^": padding // 2}[align]
    return joined((result[:left], kept, result[left + len(kept) :]))
