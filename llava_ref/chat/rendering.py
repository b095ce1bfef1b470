"""Render a conversation into the prompt string that a model was trained on, with `<image>` for each picture.

Chat templates differ: some want a message's content as a string, some as a list of parts, some inspect a text and
change it, some drop content that they do not expect. So a template gets the conversation in several forms
(`forms`), the first of which is the one that transformers passes. The prompt is the first rendering that has every text
and every picture in order. If there is none, the error names the loss: nothing is dropped silently.

A template sees the texts as they are. Each character carries the mark of its text (`sandboxed.marked`) through whatever
the template does with it. The marks in the rendering tell what a user typed from what the template wrote, and only the
template can write a control token or an image slot.
"""

import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..profiles import ImageOrder
from ..tokenizer.quote import IMAGE, Quote
from ..tokenizer.tokenizer import Tokenizer
from . import sandbox
from .call_form import CallForm, described, find_form
from .calls import Tool
from .forms import TAG, MarkedConversation
from .losses import Event, loss
from .messages import ImagePart, Message, parse_messages, parse_slots
from .sandboxed.child import runs
from .sandboxed.marked import FIRST, STRUCTURE, UNKNOWN, Marked, plain
from .templates import TEMPLATES, ChatTemplate, choose_template

__all__ = ["ChatTemplate", "Prompt", "call_form", "choose_template", "parse_messages", "render", "render_prompt"]

OTHER_SLOTS = (  # of other models' templates; a slot that is part of another stands behind it
    "<|image|>", "<start_of_image>", "[IMG]", "<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>",
    "<IMG_CONTEXT>", "<__media__>",
)  # fmt: skip
# Behind a picture. It is no control token in released files, and no user may write it either.
CLOSING = ("<end_of_image>",)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for `chat.chunks.chunks`. Users' texts are quoted in `text`, so every `<image>` in it is a slot."""

    text: str
    quote: Quote
    images: tuple[ImagePart, ...]

    @property
    def shown(self) -> str:
        """The prompt for a person to read. An `<image>` that a user typed looks like a slot in it."""
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

    Each picture becomes `<image>`, and may be a bare `{"type": "image"}`. `image_order`, a quirk (`profiles`), decides
    where it stands. `continue_final_message` leaves the last message open: the prompt ends with its text.
    Raises PromptError if a message cannot be read or there is nothing to continue, and TemplateError if the template
    fails, exceeds a limit of `sandbox` or loses a text or a picture."""
    parsed = parse_slots(messages)
    conversation = MarkedConversation.of(parsed, image_order, continue_final_message, add_generation_prompt)
    values = {"bos_token": bos_token, "eos_token": eos_token, "add_generation_prompt": add_generation_prompt}
    return _render(conversation, ChatTemplate("file", template, ""), values, ()).shown


def render_prompt(
    messages: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    image_order: ImageOrder,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Tool] = (),
) -> Prompt:
    """Render the prompt of a model, for `chat.chunks.chunks`. Raises the errors of `render`.

    `tools`, and the calls and results in `messages`, are written as `call_form` says."""
    if tools or any(message.calls or message.result_of for message in messages):
        form = call_form(template, tokenizer)
        if form.place != "template":
            messages, tools = described(messages, tools, form), ()
    conversation = MarkedConversation.of(messages, image_order, continue_final_message, add_generation_prompt, tools)
    values = _special_texts(tokenizer) | {"add_generation_prompt": add_generation_prompt}
    return _render(conversation, template, values, tokenizer.control_texts)


def call_form(template: ChatTemplate, tokenizer: Tokenizer) -> CallForm:
    """Return how calls of functions are written for a model. The first time, its template renders an example."""
    ends = tuple(tokenizer.text_of(i) for i in sorted(tokenizer.end_ids))
    return _call_form(template, tuple(_special_texts(tokenizer).items()), ends)


@lru_cache(16)
def _call_form(template: ChatTemplate, special: tuple[tuple[str, str], ...], ends: tuple[str, ...]) -> CallForm:
    def shown(messages: Sequence[Message], tools: Sequence[Tool], begins: bool) -> str:
        values = dict(special) | {"add_generation_prompt": begins}
        return _render(MarkedConversation.of(messages, "given", False, begins, tools), template, values, ()).shown

    return find_form(shown, ends)


def _special_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the texts of BOS and EOS as templates know them."""
    bos, eos = (None if i is None else tokenizer.text_of(i) for i in (tokenizer.bos_id, tokenizer.eos_id))
    return {"bos_token": bos or "", "eos_token": eos or ""}


def _render(
    conversation: MarkedConversation, template: ChatTemplate, values: dict[str, Any], control_texts: Sequence[str]
) -> Prompt:
    """Return the prompt of the first form that loses nothing. Raises TemplateError with the problem of all forms."""
    refusals: list[str] = []
    failures: list[str] = []
    losses: list[tuple[int, str]] = []
    with closing(_renderings(conversation, template, values)) as renderings:
        for rendering in renderings:
            if rendering.text is None:
                (refusals if rendering.raised else failures).append(rendering.problem)
                continue
            prompt = _prompt(rendering.text, conversation, control_texts)
            if isinstance(prompt, Prompt):
                return prompt
            losses.append(prompt)
    if refusals:
        raise template.error(f"refuses this conversation: {refusals[0]}")
    raise template.error(min(losses)[1] if losses else failures[0])


def _renderings(
    conversation: MarkedConversation, template: ChatTemplate, values: dict[str, Any]
) -> Generator[sandbox.Rendering, None, None]:
    """Render the forms one by one: with our own templates in this process, with others in the sandbox."""
    if template.source is None:
        raise template.error(f"{template.why}: choose one of {', '.join(TEMPLATES)}, or give a raw prompt")
    contexts = conversation.contexts(values)
    if template.source in TEMPLATES.values():
        yield from sandbox.run_trusted(template.source, contexts)
    else:
        yield from sandbox.run(template.source, contexts, template.where, template.field)


def _prompt(text: Marked, conversation: MarkedConversation, control_texts: Sequence[str]) -> Prompt | tuple[int, str]:
    """Make a prompt of a rendering, or return how many texts it lost and what is wrong with it."""
    if conversation.last is not None:
        cut = _cut_at_tag(text, conversation.last)
        if cut is None:
            return 0, "does not show the last message as it is, so it cannot be continued"
        text = cut
    if STRUCTURE in text._marks:
        return len(conversation.paths) + 1, "prints the list of parts that it is given"
    special = [*control_texts, IMAGE, *OTHER_SLOTS, *CLOSING]
    quote = Quote.over([text], special)
    quoted = _quoted(text, quote)
    slot = next((slot for slot in (IMAGE, *OTHER_SLOTS) if slot in quoted), IMAGE)
    events = [event for event in _events(text, quoted, slot) if event is None or event in conversation.paths]
    wrong = loss(events, conversation.expected(), conversation.order, conversation.paths)
    if wrong is not None and wrong[0] and UNKNOWN in text._marks:
        wrong = wrong[0], f"{wrong[1]}, or changes it in a way that cannot be tracked"
    wrong = wrong or _untracked(text, special)
    return Prompt(quoted.replace(slot, IMAGE), quote, conversation.images) if wrong is None else wrong


def _cut_at_tag(text: Marked, last: str) -> Marked | None:
    """Return the rendering up to the tag, or None without the tag or the `last` text.

    As in transformers, white space before the tag goes if the template stripped the space that ends it."""
    end = text.rfind(TAG.strip())
    if end < 0 or last.strip() not in text:
        return None
    return text[:end] if text.startswith(TAG, end) else text[:end].rstrip()


def _untracked(text: Marked, special: Iterable[str]) -> tuple[int, str] | None:
    """Find a control token or slot with a character of unknown origin; return what is wrong with it."""
    if UNKNOWN not in text._marks:
        return None
    for token in filter(None, special):
        for match in re.finditer(re.escape(token), plain(text)):
            if UNKNOWN in text._marks[match.start() : match.end()]:
                return 0, f"makes {token!r} from text whose origin cannot be tracked"
    return None


def _quoted(text: Marked, quote: Quote) -> str:
    """Quote everything in a rendering that the template did not write itself."""
    out, start = [], 0
    for length, mark in runs(text):
        run = plain(text[start : start + length])
        out.append(quote.quote(run) if mark else run)
        start += length
    return "".join(out)


def _events(text: Marked, quoted: str, slot: str) -> list[Event]:
    """List the texts and slots in the order of the rendering, a text at its first character that is not white space."""
    events: dict[int, Event] = {match.start(): None for match in re.finditer(re.escape(slot), quoted)}
    known, start = set(), 0
    for length, mark in runs(text):
        if mark >= FIRST and mark not in known and not text[start : start + length].isspace():
            known.add(mark)
            events[start] = mark - FIRST
        start += length
    return [events[index] for index in sorted(events)]
