"""What of a conversation did not come through a chat template: nothing is dropped silently."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..profiles import ImageOrder

Event = int | None  # the number of a text, or None for a picture


@dataclass(frozen=True, slots=True)
class Expected:
    """The texts (those that are more than white space) and pictures of one message, in the order they should have."""

    events: tuple[Event, ...]
    may_move: bool
    """A system message: templates put it first, or into the first or the last user message."""


def loss(
    found: Sequence[Event], expected: Sequence[Expected], order: ImageOrder, where: Mapping[int, str]
) -> tuple[int, str] | None:
    """Return how many texts were lost and what is wrong, or None where all came through.

    `found`: the first character of each text and the places of pictures, in the order of the rendering. `where`: the
    name of each text."""
    lost = [where[n] for message in expected for n in message.events if n is not None and n not in found]
    if lost:
        return len(lost), f"drops {', '.join(lost)}"
    pictures = sum(message.events.count(None) for message in expected)
    if found.count(None) != pictures:
        return 0, f"makes {found.count(None)} places for {pictures} pictures"
    moving = {n for message in expected if message.may_move for n in message.events if n is not None}
    kept = [event for event in found if event not in moving]
    in_order = [event for message in expected for event in message.events if event not in moving]
    fits = _each_with_its_message(kept, expected) if order == "template" else kept == in_order
    return None if fits else (0, "changes the order of the parts")


def _each_with_its_message(found: Sequence[Event], expected: Sequence[Expected]) -> bool:
    """Say whether the texts stand in order, each after the pictures of the messages before it and none of a later."""
    least: dict[int, int] = {}
    most: dict[int, int] = {}
    pictures = 0
    for message in expected:
        texts = [n for n in message.events if n is not None]
        least |= dict.fromkeys(texts, pictures)
        pictures += message.events.count(None)
        most |= dict.fromkeys(texts, pictures)
    texts = [n for n in found if n is not None]
    before = {n: found[: found.index(n)].count(None) for n in texts}
    return texts == sorted(texts) and all(least[n] <= before[n] <= most[n] for n in texts)
