"""A conversation -> the prompt string a model was trained to see, pictures as `<image>`.

A template is code of unknown taste: some want a message's content as a string, some as a list of parts, some look at
what was said and change it, some lose what they do not expect. So it is given the conversation in every form, the first
being what transformers would give it, and the first form counts in which every text and every picture came through, in
order. If none does, the error says what was lost: nothing is dropped silently.

A template sees the texts as they are. Each character carries the mark of the text it came from (`sandboxed.marked`),
through whatever the template does with it, so that in the rendering what a user typed is known from what the template
wrote: only the template can write a control token or the place of a picture.
"""

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError
from ..profiles import ImageOrder
from ..tokenizer.quote import IMAGE, Quote
from ..tokenizer.tokenizer import Tokenizer
from . import sandbox
from .losses import Event, Expected, loss
from .messages import ImagePart, Message, parse_messages, parse_slots
from .sandboxed.child import runs
from .sandboxed.marked import FIRST, STRUCTURE, UNKNOWN, Marked, joined, plain
from .templates import TEMPLATES, ChatTemplate, choose_template

__all__ = ["ChatTemplate", "Prompt", "choose_template", "parse_messages", "render", "render_prompt"]

OTHER_SLOTS = ("<|image|>", "<start_of_image>", "[IMG]", "<|image_pad|>", "<__media__>")  # of other models' templates
TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # behind the text to continue, as transformers does: templates may look at it


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for `chat.chunks.chunks`. What users typed is quoted in `text`, so every `<image>` in it is a
    slot."""

    text: str
    quote: Quote
    images: tuple[ImagePart, ...]

    @property
    def shown(self) -> str:
        """The prompt as a person should see it; a typed "<image>" looks like a slot here."""
        return self.quote.unquote(self.text)


def render(
    messages: object,
    template: str,
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    image_order: ImageOrder = "first",
) -> str:
    """Render `messages` (dicts as in OpenAI's interface, or `Message`s) by the jinja source `template`.

    Each picture is `<image>`, and may be a bare `{"type": "image"}`; `profiles` says where it stands by `image_order`.
    `continue_final_message` leaves the last message open: the prompt ends with its text. PromptError for messages that
    cannot be read, or nothing to continue; TemplateError for a template that fails, goes over a limit of `sandbox`, or
    loses a part of the conversation."""
    talk = _Talk.of(parse_slots(messages), image_order, continue_final_message, add_generation_prompt)
    values = {"bos_token": bos_token, "eos_token": eos_token, "add_generation_prompt": add_generation_prompt}
    return _render(talk, ChatTemplate("file", template, ""), values, ()).shown


def render_prompt(
    messages: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    image_order: ImageOrder,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> Prompt:
    """Render a model's prompt, ready to be cut into chunks. Errors as for `render`."""
    bos, eos = (None if i is None else tokenizer.text_of(i) for i in (tokenizer.bos_id, tokenizer.eos_id))
    values = {"bos_token": bos or "", "eos_token": eos or "", "add_generation_prompt": add_generation_prompt}
    talk = _Talk.of(messages, image_order, continue_final_message, add_generation_prompt)
    return _render(talk, template, values, tokenizer.control_texts)


Outcomes = Generator[sandbox.Outcome, None, None]
Pieces = list[str | None]  # a message's content: Marked texts, None for a picture


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    pieces: Pieces
    listed: bool


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation, its texts marked. `where`: the names of texts that must come through, by number."""

    turns: list[_Turn]
    where: dict[int, str]
    images: tuple[ImagePart, ...]
    order: ImageOrder
    last: str | None
    """The text to continue."""

    @classmethod
    def of(cls, messages: Sequence[Message], order: ImageOrder, open_ended: bool, answer_begins: bool) -> "_Talk":
        """PromptError where there is nothing to continue, or an answer should begin as well."""
        turns: list[_Turn] = []
        where: dict[int, str] = {}
        number = 0
        for message in messages:
            pieces: Pieces = []
            for part in message.parts:
                if isinstance(part, ImagePart):
                    pieces.append(None)
                    continue
                if part.text.strip():
                    where[number] = part.where
                pieces.append(Marked(part.text, chr(FIRST + number) * len(part.text)))
                number += 1
            turns.append(_Turn(message.role, pieces, message.listed))
        last = _leave_open(turns[-1].pieces, answer_begins) if open_ended else None
        images = tuple(part for message in messages for part in message.parts if isinstance(part, ImagePart))
        return cls(turns, where, images, order, last)

    def contexts(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        """What the template is given, in every form."""
        given = self.order == "given"  # then strings come first: llama.cpp gives parts to no template that takes them
        in_lists = _pictures_first if self.order == "first" else list
        as_text = _as_llama_cpp if given else _as_lines
        lists: tuple[Callable[[_Turn], object], ...] = (
            lambda t: _as_typed(in_lists(t.pieces), t.listed),
            lambda t: _as_list(in_lists(t.pieces)),
        )
        strings: tuple[Callable[[_Turn], object], ...] = (
            lambda t: as_text(t.pieces),
            lambda t: [{"type": _TEXT, "text": as_text(t.pieces)}],  # keeps the order that a template would change
        )
        kinds = (strings[0], *lists, strings[1]) if given else (*lists, *strings)
        forms: list[list[dict[str, Any]]] = []
        for content in kinds:
            form = [{"role": t.role, "content": content(t)} for t in self.turns]
            if form not in forms:
                forms.append(form)
        # Hugging Face passes `tools` and `documents` always; templates compare them with none
        return [{"messages": form, "tools": None, "documents": None, **values} for form in forms]

    def expected(self) -> list[Expected]:
        arranged = _pictures_first if self.order == "first" else list
        return [
            Expected(
                tuple(e for e in map(_event, arranged(turn.pieces)) if e in (None, *self.where)), turn.role == "system"
            )
            for turn in self.turns
        ]


def _event(piece: str | None) -> Event:
    """The number of a text; -1 for an empty one, which none has."""
    return None if piece is None else ord(piece._marks[0]) - FIRST if isinstance(piece, Marked) and piece else -1


def _leave_open(pieces: Pieces, answer_begins: bool) -> str:
    """Put the tag behind the last text, and return the text."""
    if answer_begins:
        problem = "true as well, expected one of the two: a message that goes on is not followed by an answer"
        raise PromptError("continue_final_message", "add_generation_prompt", problem)
    at = max((i for i, piece in enumerate(pieces) if piece is not None), default=None)
    if at is None:
        raise PromptError("continue_final_message", "messages", "the last one has no text to continue")
    text = pieces[at] or ""
    pieces[at] = joined((text, TAG))
    return text


def _pictures_first(pieces: Pieces) -> Pieces:
    return sorted(pieces, key=lambda piece: piece is not None)


def _as_lines(pieces: Pieces) -> str:
    """One string, the pictures first, every part on a line of its own, as LLaVA was trained."""
    arranged = _pictures_first(pieces)
    return joined(x for i, piece in enumerate(arranged) for x in ("\n" if i else "", IMAGE if piece is None else piece))


def _as_llama_cpp(pieces: Pieces) -> str:
    """One string in the order given, a line feed between two texts and none around a picture (llama.cpp b11549)."""
    out: list[str] = []
    for before, piece in zip((None, *pieces), pieces, strict=False):
        out += ["\n"] if before is not None and piece is not None else []
        out.append(IMAGE if piece is None else piece)
    return joined(out)


def _as_typed(pieces: Pieces, listed: bool) -> str | list[dict[str, str]]:
    """What people write: a lone text as a string, anything else as a list."""
    if not listed and len(pieces) < 2 and None not in pieces:
        return pieces[0] or "" if pieces else ""
    return [{"type": "image"} if piece is None else {"type": "text", "text": piece} for piece in pieces]


def _as_list(pieces: Pieces) -> list[dict[str, str]]:
    """What nobody wrote: a template that prints it has not understood it."""
    return [{"type": _IMAGE} if piece is None else {"type": _TEXT, "text": piece} for piece in pieces]


_IMAGE, _TEXT = (Marked(name, STRUCTURE * len(name)) for name in ("image", "text"))


def _render(talk: _Talk, template: ChatTemplate, values: dict[str, Any], control_texts: Sequence[str]) -> Prompt:
    """The first form that holds everything. TemplateError says what is wrong with them all."""
    refusals: list[str] = []
    failures: list[str] = []
    losses: list[tuple[int, str]] = []
    with closing(_outcomes(talk, template, values)) as outcomes:
        for outcome in outcomes:
            if outcome.text is None:
                (refusals if outcome.raised else failures).append(outcome.problem)
                continue
            found = _prompt(outcome.text, talk, control_texts)
            if isinstance(found, Prompt):
                return found
            losses.append(found)
    if refusals:
        raise template.error(f"refuses this conversation: {refusals[0]}")
    raise template.error(min(losses)[1] if losses else failures[0])


def _outcomes(talk: _Talk, template: ChatTemplate, values: dict[str, Any]) -> Outcomes:
    if template.source is None:
        raise template.error(f"{template.why}: choose one of {', '.join(TEMPLATES)}, or give a raw prompt")
    contexts = talk.contexts(values)
    if template.source in TEMPLATES.values():
        yield from sandbox.run_trusted(template.source, contexts)
    else:
        yield from sandbox.run(template.source, contexts, template.where, template.field)


def _prompt(text: Marked, talk: _Talk, control_texts: Sequence[str]) -> Prompt | tuple[int, str]:
    """A rendering as a prompt, or what is wrong with it."""
    if talk.last is not None:
        cut = _cut(text, talk.last)
        if cut is None:
            return 0, "does not show the last message as it is, so it cannot be continued"
        text = cut
    if STRUCTURE in text._marks:
        return len(talk.where) + 1, "prints the list of parts that it is given"
    special = [*control_texts, IMAGE, *OTHER_SLOTS]
    quote = Quote.over([text], special)
    quoted = _quoted(text, quote)
    slot = next((slot for slot in (IMAGE, *OTHER_SLOTS) if slot in quoted), IMAGE)
    wrong = loss(_events(text, quoted, slot), talk.expected(), talk.order, talk.where)
    if wrong is not None and wrong[0] and UNKNOWN in text._marks:
        wrong = wrong[0], f"{wrong[1]}, or makes of it what cannot be followed"
    wrong = wrong or _doubt(text, special)
    return Prompt(quoted.replace(slot, IMAGE), quote, talk.images) if wrong is None else wrong


def _cut(text: Marked, last: str) -> Marked | None:
    """The rendering up to the tag; as transformers, without white space before it where white space behind it went."""
    at = text.rfind(TAG.strip())
    if at < 0 or last.strip() not in text:
        return None
    return text[:at] if text.startswith(TAG, at) else text[:at].rstrip()


def _doubt(text: Marked, special: Iterable[str]) -> tuple[int, str] | None:
    """Whether a control token or slot holds a character of unknown origin."""
    if UNKNOWN not in text._marks:
        return None
    for token in filter(None, special):
        for found in re.finditer(re.escape(token), plain(text)):
            if UNKNOWN in text._marks[found.start() : found.end()]:
                return 0, f"makes {token!r} in a way that cannot be followed back to what was said"
    return None


def _quoted(text: Marked, quote: Quote) -> str:
    """The rendering with everything quoted that the template did not write itself."""
    out, at = [], 0
    for n, mark in runs(text):
        piece = plain(text[at : at + n])
        out.append(quote.quote(piece) if mark else piece)
        at += n
    return "".join(out)


def _events(text: Marked, quoted: str, slot: str) -> list[Event]:
    """The texts by their first characters that are not white space, and the slots, in order."""
    places: list[tuple[int, Event]] = [(found.start(), None) for found in re.finditer(re.escape(slot), quoted)]
    seen, at = set(), 0
    for n, mark in runs(text):
        if mark >= FIRST and mark not in seen and not text[at : at + n].isspace():
            seen.add(mark)
            places.append((at, mark - FIRST))
        at += n
    return [event for _, event in sorted(places, key=lambda place: place[0])]
