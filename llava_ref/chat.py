"""A conversation -> the prompt string a model was trained to see, pictures as `<image>`.

A template is code of unknown taste: some want a message's content as a string, some as a list of parts, some put all
pictures first, some lose what they do not expect. So it is given the conversation with a stand-in for each text, in
every form, and the first form counts in which each stand-in and each picture came through once and in order; then the
texts take their places. If none does, the error says what was lost: nothing is dropped silently. And what users typed
is never seen by the template, so neither its length nor what it says can lead one astray.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import sandbox
from .errors import PromptError, TemplateError
from .messages import ImagePart, Message, TextPart, parse_messages, parse_slots
from .profiles import ImageOrder
from .quote import IMAGE, Quote
from .templates import KEY, TEMPLATES, ChatTemplate, choose_template
from .tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Prompt", "choose_template", "parse_messages", "render", "render_prompt"]

OTHER_SLOTS = ("<|image|>", "<start_of_image>", "[IMG]", "<|image_pad|>", "<__media__>")  # of other models' templates
STAND_IN = "\x02{}\x03"  # for a text, with its number; "start of text", "end of text"
TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # behind the text to continue, as transformers does: templates may look at it
EVENT = re.compile("\x02([0-9]{1,9})\x03|" + re.escape(IMAGE))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for `prompt.chunks`. What users typed is quoted in `text`, so every `<image>` in it is a slot."""

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
    values = {"bos_token": bos_token, "eos_token": eos_token, "add_generation_prompt": add_generation_prompt}
    given = _Given(parse_slots(messages), image_order, continue_final_message)
    return _render(given, template, KEY, values, ()).shown


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
    if template.source is None:
        problem = f"{template.why}: choose one of {', '.join(TEMPLATES)}, or give a raw prompt"
        raise TemplateError("chat template", KEY, problem)
    bos, eos = (None if i is None else tokenizer.text_of(i) for i in (tokenizer.bos_id, tokenizer.eos_id))
    values = {"bos_token": bos or "", "eos_token": eos or "", "add_generation_prompt": add_generation_prompt}
    field = KEY if template.name == "file" else template.name
    given = _Given(messages, image_order, continue_final_message)
    return _render(given, template.source, field, values, tokenizer.control_texts)


@dataclass(frozen=True, slots=True)
class _Given:
    messages: Sequence[Message]
    image_order: ImageOrder
    open_ended: bool


def _render(given: _Given, source: str, field: str, values: dict[str, Any], control_texts: Sequence[str]) -> Prompt:
    if given.open_ended and values["add_generation_prompt"]:
        problem = "true too, expected one of the two: an open message is continued, so no answer begins"
        raise PromptError("continue_final_message", "add_generation_prompt", problem)
    messages = [_ordered(message, given.image_order) for message in given.messages]
    parts = [part for message in messages for part in message.parts]
    expected, turns = _stand_ins(messages)
    if given.open_ended:
        _leave_open(turns)
    forms: list[list[dict[str, Any]]] = []
    for content in FORMS:
        form = [{"role": role, "content": content(pieces)} for role, pieces in turns]
        if form not in forms:
            forms.append(form)
    # Hugging Face passes `tools` and `documents` always; templates compare them with none
    contexts = [{"messages": form, "tools": None, "documents": None, **values} for form in forms]
    ours = source in TEMPLATES.values()
    outcomes = sandbox.run_trusted(source, contexts) if ours else sandbox.run(source, contexts, field)
    if given.open_ended:
        outcomes = [_cut(outcome) for outcome in outcomes]
    text = _first_complete(outcomes, expected, [part.where for part in parts], field)
    texts = [part.text.strip() if isinstance(part, TextPart) else "" for part in parts]
    quote = Quote.over([text, *texts], control_texts)
    filled = EVENT.sub(lambda event: quote.quote(texts[int(event[1])]) if event[1] else IMAGE, text)
    return Prompt(filled, quote, tuple(part for part in parts if isinstance(part, ImagePart)))


def _ordered(message: Message, order: ImageOrder) -> Message:
    if order == "given":
        return message
    return replace(message, parts=tuple(sorted(message.parts, key=lambda part: isinstance(part, TextPart))))


def _leave_open(turns: list[tuple[str, "Pieces"]]) -> None:
    pieces = turns[-1][1]
    last = max((i for i, piece in enumerate(pieces) if piece is not None), default=None)
    if last is None:
        raise PromptError("continue_final_message", "messages", "the last one has no text to continue")
    pieces[last] = f"{pieces[last]}{TAG}"


def _cut(outcome: sandbox.Outcome) -> sandbox.Outcome:
    """The rendering up to the tag; as transformers, without white space before it where white space behind it went."""
    if outcome.text is None or (at := outcome.text.rfind(TAG.strip())) < 0:
        return outcome if outcome.text is None else sandbox.Outcome("")
    whole = outcome.text.startswith(TAG, at)
    return sandbox.Outcome(outcome.text[:at] if whole else outcome.text[:at].rstrip())


Pieces = list[str | None]  # a message's content: texts with stand-ins, None for a picture
Event = int | None  # the number of a text among all parts; None is a picture


def _stand_ins(messages: Sequence[Message]) -> tuple[list[Event], list[tuple[str, Pieces]]]:
    """What must come through, in order; and the messages with a stand-in for each text. White space around a text
    stays: many templates strip it, and may. So does a text that is nothing else: some templates ask for that."""
    expected: list[Event] = []
    turns: list[tuple[str, Pieces]] = []
    number = 0
    for message in messages:
        pieces: Pieces = []
        for part in message.parts:
            if isinstance(part, ImagePart):
                expected.append(None)
                pieces.append(None)
            elif core := part.text.strip():
                lead, _, trail = part.text.partition(core)
                expected.append(number)
                pieces.append(lead + STAND_IN.format(number) + trail)
            else:
                pieces.append(part.text)
            number += 1
        turns.append((message.role, pieces))
    return expected, turns


def _as_text(pieces: Pieces) -> str:
    """One string, parts on lines of their own, as llama.cpp joins them."""
    return "\n".join(IMAGE if piece is None else piece for piece in pieces)


def _as_list(pieces: Pieces) -> list[dict[str, str]]:
    return [{"type": "image"} if piece is None else {"type": "text", "text": piece} for piece in pieces]


def _as_typed(pieces: Pieces) -> str | list[dict[str, str]]:
    """A lone text as a string, anything else as a list: what people write."""
    return _as_list(pieces) if None in pieces or len(pieces) > 1 else _as_text(pieces)


def _as_one_part(pieces: Pieces) -> list[dict[str, str]]:
    """A list of one text that holds the slots: keeps the order where a template would put all pictures first."""
    return [{"type": "text", "text": _as_text(pieces)}]


FORMS: tuple[Callable[[Pieces], object], ...] = (_as_typed, _as_list, _as_text, _as_one_part)


def _first_complete(
    outcomes: Sequence[sandbox.Outcome], expected: list[Event], where: Sequence[str], field: str
) -> str:
    """The first rendering that holds everything. TemplateError says what is wrong with them all."""
    refusals: list[str] = []
    losses: list[tuple[int, str]] = []
    failures: list[str] = []
    for outcome in outcomes:
        if outcome.text is None:
            (refusals if outcome.raised else failures).append(outcome.problem)
            continue
        text = _with_image_slots(outcome.text)
        events = [int(event[1]) if event[1] else None for event in EVENT.finditer(text)]
        if events == expected:
            return text
        losses.append(_loss(events, expected, where))
    if refusals:
        raise TemplateError("chat template", field, f"refuses this conversation: {refusals[0]}")
    raise TemplateError("chat template", field, min(losses)[1] if losses else failures[0])


def _with_image_slots(text: str) -> str:
    """Another model's image token as `<image>`, where the template wrote no `<image>`."""
    slot = next((slot for slot in OTHER_SLOTS if slot in text), None) if IMAGE not in text else None
    return text.replace(slot, IMAGE) if slot else text


def _loss(events: list[Event], expected: list[Event], where: Sequence[str]) -> tuple[int, str]:
    """How many texts were lost, and what differs between the parts that came through and those that should have."""
    lost = [where[number] for number in expected if number is not None and number not in events]
    if lost:
        return len(lost), f"drops {', '.join(lost)}"
    if events.count(None) != expected.count(None):
        return 0, f"makes {events.count(None)} places for {expected.count(None)} pictures"
    return 0, "repeats a text" if len(events) != len(expected) else "changes the order of the parts"
