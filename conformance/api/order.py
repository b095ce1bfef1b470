"""Several pictures and texts: all are kept, each in its place."""

from typing import Any

from .case import REFERENCE, DemandGroup, need, need_difference, prompt_tokens, seen, text_of
from .media import ASK, image, text
from .target import Target

ORDER = DemandGroup("order")
PARTS = f"{REFERENCE}, messages[].content: an array of content parts"


@ORDER.demand("must", "Text may stand before, between and behind pictures.", PARTS)
def positions(s: Target) -> None:
    for content in ([image(), ASK], [ASK, image()], [image(0), ASK, image(1)], [ASK, image(), ASK]):
        text_of(s.ask(content))


@ORDER.demand("must", "Each of two pictures makes the prompt longer.", f"{REFERENCE}, usage.prompt_tokens")
def both_pictures(s: Target) -> None:
    one, two = prompt_tokens(s.ask([image(0), ASK])), prompt_tokens(s.ask([image(0), image(1), ASK]))
    need(two > one, f"prompt_tokens {two} with two pictures, {one} with one")


@ORDER.demand("must", "The second picture is seen, too.", PARTS)
def second_picture(s: Target) -> None:
    need_difference(seen(s, [image(0), image(0), ASK]), seen(s, [image(0), image(1), ASK]), "another second picture")


@ORDER.demand("must", "The order of pictures is kept.", PARTS)
def order_of_pictures(s: Target) -> None:
    need_difference(seen(s, [image(0), image(1), ASK]), seen(s, [image(1), image(0), ASK]), "pictures exchanged")


@ORDER.demand("must", "The order of texts is kept.", PARTS)
def order_of_texts(s: Target) -> None:
    first, second = text("Only the word left."), text("Never mind 1 2 3.")
    need_difference(seen(s, [first, image(), second]), seen(s, [second, image(), first]), "texts exchanged")


@ORDER.demand("must", "Every text part makes the prompt longer.", PARTS)
def every_text(s: Target) -> None:
    short, long = prompt_tokens(s.ask([image(), ASK])), prompt_tokens(s.ask([image(), ASK, text("And what else?")]))
    need(long > short, f"prompt_tokens {long} with a second text, {short} without")


@ORDER.demand("must", "A picture of an earlier message is seen.", f"{REFERENCE}, messages: the conversation so far")
def earlier_message(s: Target) -> None:
    def talk(which: int) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": [image(which), ASK]},
            {"role": "assistant", "content": "A shape."},
            {"role": "user", "content": "What colour?"},
        ]

    need_difference(seen(s, "", messages=talk(0)), seen(s, "", messages=talk(1)), "another picture in a first message")


@ORDER.demand(
    "must", "A text alone and a list of that one text are the same message.", f"{REFERENCE}, messages[].content"
)
def text_or_list(s: Target) -> None:
    alone, listed = s.ask("What is a circle?"), s.ask([text("What is a circle?")])
    same = text_of(alone) == text_of(listed) and prompt_tokens(alone) == prompt_tokens(listed)
    need(same, f"{alone.said()} for the text, {listed.said()} for the list")


@ORDER.demand("must", "A system message is a part of the prompt.", f"{REFERENCE}, messages[].role")
def system_message(s: Target) -> None:
    question = {"role": "user", "content": [image(), ASK]}
    with_it = s.ask("", messages=[{"role": "system", "content": "Answer in one short word."}, question])
    text_of(with_it)
    need(prompt_tokens(with_it) > prompt_tokens(s.ask("", messages=[question])), "the prompt is not longer for it")


@ORDER.demand("should", "Role developer is a system message.", f"{REFERENCE}, messages[].role")
def developer_message(s: Target) -> None:
    question = {"role": "user", "content": "What is a circle?"}
    text_of(s.ask("", messages=[{"role": "developer", "content": "Answer in one short word."}, question]))
