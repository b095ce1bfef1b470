"""Provide jinja's filters over `Marked` text: the same results, with marks.

Filters that return their input or parts of it are used as they are. Those that make text are written anew here. All
others give text of unknown origin.
"""

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import update_wrapper
from typing import Any, SupportsIndex

from jinja2.environment import Environment
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.utils import pass_environment
from markupsafe import Markup, escape

from .formatting import percent
from .marked import Marked, Untracked, joined, marked, marks_of, plain, respelt, tainted, text_of, unknown

PASSED = (  # filters that return their input, parts of it, or numbers
    "abs attr batch count d default dictsort first float groupby int items last length list map max min random reject "
    "rejectattr round select selectattr slice sort sum unique wordcount"
).split()
ESCAPED = re.compile("[&<>'\"]")
NOT_JSON = {True: re.compile(r"[^ !#-\[\]-~]"), False: re.compile(r'[\x00-\x1f"\\]')}  # by `ensure_ascii`
WORDS = re.compile(r"([-\s({\[<]+)")  # characters after which `title` begins a new word


class Safe(Marked):
    """Text declared as HTML. It combines with other text by rules of its own, which are not tracked."""

    __slots__ = ()

    def __getitem__(self, key: SupportsIndex | slice) -> Marked:
        raise Untracked("a part of text that was marked safe")


def _safe(value: Any) -> str:
    """Declare a text as HTML."""
    text = text_of(value)
    return Safe(plain(text), marks_of(text)) if tainted(text) else Markup(text)


def _forceescape(value: Any) -> str:
    """Escape a text for HTML, even if it is declared as HTML."""
    text = text_of(value)
    return _safe(respelt(text, ESCAPED, lambda c: str(escape(c)))) if tainted(text) else escape(str(text))


def _escape(value: Any) -> str:
    return value if isinstance(value, Safe | Markup) else _forceescape(value)


def _method(name: str) -> Callable[..., str]:
    """Return a filter that calls a method of str."""

    def call(value: Any, *args: Any, **options: Any) -> str:
        text: str = getattr(text_of(value), name)(*args, **options)
        return text

    return call


def _center(value: Any, width: int = 80) -> str:
    return marked(text_of(value)).center(width)


def _title(value: Any) -> str:
    """Capitalise each word, by jinja's rule for the start of a word."""
    text, cuts = marked(text_of(value)), [0]
    for separator in WORDS.finditer(plain(text)):
        cuts += separator.span()
    words = [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return joined(piece for word in words for piece in (word[:1].upper(), word[1:].lower()))


def _trim(value: Any, chars: str | None = None) -> str:
    return text_of(value).strip(chars)


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    return marked(text_of(s)).replace(text_of(old), text_of(new), -1 if count is None else count)


@pass_environment
def _join(env: Environment, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    """Join the items, or one attribute of each."""
    items = value if attribute is None else map(make_attrgetter(env, attribute), value)
    return marked(text_of(d)).join(map(text_of, items))


def _format(value: Any, *args: Any, **values: Any) -> str:
    return percent(text_of(value), values or args)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Indent as jinja does: also the empty line after a last line feed counts."""
    space = width if isinstance(width, str) else " " * width
    line, *lines = marked(s + "\n").splitlines()
    later = [piece for text in lines for piece in ("\n", space if text or blank else "", text)]
    return joined([space if first else "", line, *later])


@pass_environment
def _wordwrap(
    env: Environment,
    s: str,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    break_on_hyphens: bool = True,
) -> str:
    """Wrap each line to a width."""
    wrapper = textwrap.TextWrapper(
        width=width,
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=break_long_words,
        break_on_hyphens=break_on_hyphens,
    )
    end, lines = marked(env.newline_sequence if wrapstring is None else wrapstring), []
    for line in marked(s).splitlines():
        lines.append(end.join(marked(line)._located(wrapper.wrap(plain(line)), 0)))
    return end.join(lines)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without escapes for HTML, as transformers does. Texts are inserted afterwards, with their marks."""

    def dump(x: object) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    text = dump(value)
    if not tainted(value):
        return text
    name = "x"
    while name in text:
        name += "x"
    texts: list[str] = []
    named = dump(_named(value, name, texts))
    filled, end = [], 0
    for place in re.finditer(rf'"{name}(\d+)"', named):
        spelt = respelt(
            texts[int(place[1])], NOT_JSON[ensure_ascii], lambda c: json.dumps(c, ensure_ascii=ensure_ascii)[1:-1]
        )
        filled += [named[end : place.start()], '"', spelt, '"']
        end = place.end()
    tracked = joined([*filled, named[end:]])
    return tracked if tracked == text else unknown(text)


def _named(value: Any, name: str, texts: list[str]) -> Any:
    """Replace every marked text, keys included, by `name` and its number, and collect it in `texts`."""
    if isinstance(value, Marked):
        texts.append(value)
        return f"{name}{len(texts) - 1}"
    if isinstance(value, Mapping):
        return {_named(key, name, texts): _named(x, name, texts) for key, x in value.items()}
    return [_named(x, name, texts) for x in value] if isinstance(value, list | tuple) else value


def _untracked(filter: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter with results of unknown origin."""

    def call(*args: Any, **options: Any) -> Any:
        result = filter(*args, **options)
        return unknown(str(result)) if isinstance(result, str) and tainted([*args, *options.values()]) else result

    return update_wrapper(call, filter)  # keeps the attribute that asks for the environment


def _not_on_safe(filter: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter with an error for Safe text."""

    def call(*args: Any, **options: Any) -> Any:
        if any(isinstance(x, Safe) for x in args):
            raise Untracked("a filter on text that was marked safe")
        return filter(*args, **options)

    return update_wrapper(call, filter)


def table() -> dict[str, Callable[..., Any]]:
    """Return all filters by name."""
    known = {name: FILTERS[name] for name in PASSED if name in FILTERS}
    own: dict[str, Callable[..., Any]] = {
        **{name: _method(name) for name in ("capitalize", "lower", "upper")},
        "center": _center, "title": _title, "trim": _trim, "replace": _replace, "join": _join, "format": _format,
        "indent": _indent, "wordwrap": _wordwrap, "truncate": FILTERS["truncate"], "reverse": FILTERS["reverse"],
    }  # fmt: skip
    html: dict[str, Callable[..., Any]] = {
        "tojson": _tojson, "string": text_of, "safe": _safe, "e": _escape, "escape": _escape,
        "forceescape": _forceescape,
    }  # fmt: skip
    own = {name: _not_on_safe(filter) for name, filter in own.items()} | html
    rest = {name: _untracked(filter) for name, filter in FILTERS.items() if name not in known | own}
    return known | own | rest
