"""Find the texts and pictures of a conversation that a chat template dropped or moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..profiles import ImageOrder

Event = int | None  # in a prompt: the number of a text, or None for a picture


@dataclass(frozen=True, slots=True)
class ExpectedMessage:
    """The pictures and texts of one message in the order they should have. Texts of white space are left out."""

    events: tuple[Event, ...]
    may_move: bool
    """Whether it is a system message: templates put these first, or into the first or the last user message."""


def loss(
    rendered: Sequence[Event], expected: Sequence[ExpectedMessage], order: ImageOrder, paths: Mapping[int, str]
) -> tuple[int, str] | None:
    """Return how many texts were lost and what is wrong, or None if all came through.

    `rendered` has the first character of each text and the slots, in the order of the rendering. `paths` has the JSON
    path of each text."""
    lost = [paths[n] for message in expected for n in message.events if n is not None and n not in rendered]
    if lost:
        return len(lost), f"drops {', '.join(lost)}"
    slots, pictures = rendered.count(None), sum(message.events.count(None) for message in expected)
    if slots != pictures:
        return 0, f"makes {slots} slots for {pictures} pictures"
    movable = {n for message in expected if message.may_move for n in message.events if n is not None}
    fixed = [event for event in rendered if event not in movable]
    in_order = [event for message in expected for event in message.events if event not in movable]
    right = _each_with_its_message(fixed, expected) if order == "template" else fixed == in_order
    return None if right else (0, "changes the order of the parts")


def _each_with_its_message(rendered: Sequence[Event], expected: Sequence[ExpectedMessage]) -> bool:
    """Say whether texts are in order, each after the pictures of earlier messages and before those of later ones."""
    fewest: dict[int, int] = {}
    most: dict[int, int] = {}
    pictures = 0
    for message in expected:
        texts = [n for n in message.events if n is not None]
        fewest |= dict.fromkeys(texts, pictures)
        pictures += message.events.count(None)
        most |= dict.fromkeys(texts, pictures)
    texts = [n for n in rendered if n is not None]
    before = {n: rendered[: rendered.index(n)].count(None) for n in texts}  # pictures before each text
    return texts == sorted(texts) and all(fewest[n] <= before[n] <= most[n] for n in texts)
