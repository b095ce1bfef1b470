"""How a model writes calls of functions: found by rendering an example with its chat template.

A template that shows tools, calls and results is given all three, and answers have the form that it writes a call in.
For any other template, `described` puts them into words, in the plain form: the functions in a system message, a call
as a JSON object, a result as a message of the user.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import LlavaError
from .calls import Tool, ToolCall
from .messages import ImagePart, Message, TextPart

Render = Callable[[Sequence[Message], Sequence[Tool], bool], str]  # (messages, tools, whether an answer begins)
PROBE = Tool(
    "probe_function",
    "probe description",
    {"type": "object", "properties": {"probe_key": {"type": "string"}, "probe_number": {"type": "integer"}}},
)
ARGUMENTS = re.compile(r'\{\s*"probe_key"(\s*:\s*)"probe_value"(\s*,\s*)"probe_number"\s*:\s*1\s*\}')
NAME_HERE, ARGUMENTS_HERE = "probe_name_here", "probe_arguments_here"
IDS = ("probecal1", "probecal2")  # nine letters and digits, which Mistral's templates insist on
HOW = (
    'To call one, answer with nothing but {"name": its name, "arguments": an object with its arguments}, '
    "one such line for each call."
)


@dataclass(frozen=True, slots=True)
class CallForm:
    """The texts around a call's name and its arguments, which are a JSON object."""

    opening: str
    """Before the name of the first call."""
    between: str
    """Between a name and its arguments."""
    joint: str | None
    """Between the arguments of a call and the name of the next; None if an answer has one call at most."""
    closing: str
    """Behind the arguments of the last call."""
    comma: str = ", "
    colon: str = ": "
    place: Literal["template", "system", "user"] = "template"
    """Where the tools are described: by the template, in a system message, or before the user's first words."""

    @property
    def trigger(self) -> str:
        """Return the text that begins a call wherever it stands; "" if JSON does, which must begin an answer then."""
        word = re.split(r"[\s{]", self.opening, maxsplit=1)[0]
        return word if re.search(r"\w", word) else ""

    def call(self, name: str) -> str:
        """Return the text from the beginning of a first call to its arguments."""
        return self.opening + name + self.between

    @property
    def json(self) -> Any:
        """Return the JSON that a lone call is, with `NAME_HERE` and `ARGUMENTS_HERE`; None if it is not JSON, or is
        written with other separators than its arguments."""
        text = self.call(NAME_HERE) + json.dumps(ARGUMENTS_HERE) + self.closing
        try:
            value = json.loads(text)
        except ValueError:
            return None
        return value if json.dumps(value, separators=(self.comma, self.colon)) == text else None


PLAIN = CallForm('{"name": "', '", "arguments": ', '}\n{"name": "', "}", place="system")


def find_form(render: Render, end_texts: Sequence[str]) -> CallForm:
    """Return the form of calls of the template that `render` renders with; `end_texts` end an answer."""
    user = Message("user", (TextPart("probe question"),))
    for ids in (IDS, IDS[:1]):
        calls = tuple(ToolCall(id, PROBE.name, {"probe_key": "probe_value", "probe_number": 1}) for id in ids)
        results = [Message("tool", (TextPart("probe result"),), result_of=call) for call in calls]
        try:
            before = render([user], [PROBE], True)
            shown = render([user, Message("assistant", (), calls=calls), *results], [PROBE], True)
        except LlavaError:
            continue
        form = _form(before, shown, len(calls), end_texts)
        if form is not None:
            return form
    try:
        render([Message("system", (TextPart("probe words"),)), user], [], True)
    except LlavaError:
        return replace(PLAIN, place="user")
    return PLAIN


def _form(before: str, shown: str, n_calls: int, end_texts: Sequence[str]) -> CallForm | None:
    """Read the form off a rendering with calls; `before` is the prompt that they answer. None if they are not JSON."""
    if not shown.startswith(before):
        return None
    found, at = [], len(before)
    for _ in range(n_calls):
        name = shown.find(PROBE.name, at)
        arguments = None if name < 0 else ARGUMENTS.search(shown, name)
        if arguments is None:
            return None
        found.append((shown[at:name], shown[name + len(PROBE.name) : arguments.start()]))
        colon, comma, at = arguments[1], arguments[2], arguments.end()
    ends = [end for text in end_texts if text and (end := shown.find(text, at)) >= 0]
    between = {text for _, text in found}
    if not ends or len({text.replace(IDS[1], IDS[0]) for text in between}) > 1:
        return None
    joint = found[1][0] if n_calls > 1 else None
    form = CallForm(found[0][0].lstrip(), found[0][1], joint, shown[at : min(ends)].rstrip(), comma, colon)
    return form if form.trigger or form.json is not None else None


def described(messages: Sequence[Message], tools: Sequence[Tool], form: CallForm) -> list[Message]:
    """Put tools, calls and results into the words of the plain form."""
    plain: list[Message] = []
    for message in map(_in_words, messages):
        if plain and plain[-1].role == message.role == "user":  # templates want the roles to take turns
            plain[-1] = replace(plain[-1], parts=(*plain[-1].parts, *message.parts))
        else:
            plain.append(message)
    return _with_tools(plain, tools, form) if tools else plain


def _in_words(message: Message) -> Message:
    if message.result_of is not None:
        heading = TextPart(f"Result of {message.result_of.name}:", "result")
        return Message("user", (heading, *message.parts), message.listed)
    calls = (TextPart(PLAIN.call(call.name) + json.dumps(call.arguments) + PLAIN.closing) for call in message.calls)
    return replace(message, parts=(*message.parts, *calls), calls=())


def _with_tools(messages: Sequence[Message], tools: Sequence[Tool], form: CallForm) -> list[Message]:
    """Describe the tools behind a system message that comes first, or where `form` says."""
    part = TextPart("\n".join(["You can call these functions:", *map(_line, tools), HOW]), "tools")
    first, rest = messages[0], messages[1:]
    if first.role == "system" and form.place == "system":
        return [replace(first, parts=(*first.parts, part)), *rest]
    if form.place == "system":
        return [Message("system", (part,)), *messages]
    return list(_before_words(messages, part))


def _before_words(messages: Sequence[Message], part: TextPart) -> Iterator[Message]:
    """Put `part` before the first text of the user, behind pictures that come first."""
    done = False
    for message in messages:
        if message.role == "user" and not done:
            at = next((i for i, one in enumerate(message.parts) if not isinstance(one, ImagePart)), len(message.parts))
            message, done = replace(message, parts=(*message.parts[:at], part, *message.parts[at:])), True
        yield message


def _line(tool: Tool) -> str:
    return json.dumps(
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters}, ensure_ascii=False
    )
