"""What the routes of conversations share: how a prompt ends, its pictures' pixels, the prompt itself, warnings."""

from dataclasses import dataclass
from typing import Any

from .. import images
from ..chat.messages import Fetch, ImagePart, Message, TextPart, parse_messages, unheard
from ..errors import ImageError, PromptError, printable
from ..generation.request import Request
from .body import parse_json
from .calling import Calling, decide
from .errors import library_errors, refuse
from .limits import Allowance, Limits
from .models import LoadedModel
from .schema import PromptedRequest, TemplateRequest, parse
from .texts import warnings_field
from .undeclared import capped


@dataclass(frozen=True, slots=True)
class PromptEnd:
    """How the prompt of a conversation ends."""

    messages: list[Message]
    add: bool
    """Whether the template begins a new assistant message."""
    continues: bool
    """Whether the answer continues the last message."""
    warnings: tuple[str, ...] = ()


def prompt_end(params: PromptedRequest, messages: list[Message]) -> PromptEnd:
    """Decide how the prompt ends: as requested, or by default by continuing a last message of the assistant.

    llama.cpp's server, Ollama and transformers' pipeline have the same default, because no model was trained to follow
    its own message with another. vLLM begins a new message unless it is told to continue."""
    add, continues = params.add_generation_prompt, params.continue_final_message
    *before, last = messages
    if last.calls:
        where = f"messages[{len(before)}].tool_calls"
        raise refuse(where, f"{where}: expected messages of role tool with the results next")
    if add is not None or continues is not None or last.role != "assistant":
        return PromptEnd(messages, not continues if add is None else add, bool(continues))
    if before and not any(isinstance(part, TextPart) and part.text.strip() for part in last.parts):
        return PromptEnd(before, True, False)  # the last message has no text yet
    where = f"messages[{len(before)}]"
    warning = f"{where}: the answer continues this message; add_generation_prompt: true begins a new one"
    return PromptEnd(messages, False, True, (warning,))


def reserve_pixels(messages: list[Message], limits: Limits, pixel_allowance: Allowance) -> int:
    """Take the pixels of all pictures from the allowance, before any is decoded; returns their number.

    Raises PromptError and ImageError beyond the request's own limits, ApiError 429 beyond what all requests share."""
    parts = [part for message in messages for part in message.parts if isinstance(part, ImagePart)]
    if len(parts) > limits.max_images:
        problem = f"{len(parts)} images, expected at most {limits.max_images}"
        raise PromptError(parts[limits.max_images].where, "image", problem)
    total = 0
    for part in parts:
        assert isinstance(part.source, bytes)
        width, height = images.measure(part.source, part.where)
        total += width * height
        if total > limits.max_pixels:
            problem = f"{total:,} pixels including the previous pictures, expected at most {limits.max_pixels:,}"
            raise ImageError(part.where, "size", problem, code="image_too_large")
    pixel_allowance.take(total)
    return total


def chat_request(
    loaded: LoadedModel,
    messages: list[Message],
    calling: Calling = Calling(),  # noqa: B008
    *,
    add: bool = True,
    continues: bool = False,
) -> Request:
    prompts = loaded.model.prompts
    return prompts.conversation(messages, loaded.prompts, add=add, continues=continues, tools=calling.tools)


def apply_template(body: bytearray, loaded: LoadedModel, fetch: Fetch | None, strict: bool) -> dict[str, Any]:
    """Return `{"prompt": ...}` as llama-server does: the text that a chat becomes. Raises ApiError."""
    raw = parse_json(body)
    params, warnings = parse(TemplateRequest, raw, strict=strict)
    asked = params.asked_calls()
    with library_errors(raw, "messages"):
        end = prompt_end(params, parse_messages(params.messages, allow_objects=False, fetch=fetch))
        calling = decide(loaded, asked, None)
        prompt = loaded.model.prompts.rendered(
            end.messages,
            loaded.prompts,
            calling.tools,
            add_generation_prompt=end.add,
            continue_final_message=end.continues,
        )
    warnings += message_warnings(params.messages, strict=strict) + end.warnings + calling.warnings
    return {"prompt": prompt.shown} | warnings_field(warnings)


def message_warnings(messages: Any, where: str = "messages", *, strict: bool) -> tuple[str, ...]:
    """Return a warning for each field of the messages that has no effect. Raises ApiError if `strict`."""
    paths = unheard(messages, where)
    if strict and paths:
        raise refuse(paths[0], f"{paths[0]}: not supported", "unsupported_parameter")
    return capped([f"{printable(path, 200)}: has no effect here" for path in paths])
