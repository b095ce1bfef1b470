"""Encode conversations about pictures into the tokens that inference makes of them.

`ConversationEncoder` follows the `vicuna` template and one value of the quirk `text_pieces` (`llava_ref.chat.chunks`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llava_ref.tokenizer.tokenizer import Tokenizer

BOS, EOS = 1, 2
STYLES = ("separate", "separate", "separate", "separate-prefixed", "separate-prefixed", "whole")  # drawn equally often
LINE = "\n"  # between a picture and the text, but not in the prompts of llama.cpp (`separate-prefixed`)
PATCHES = 64


@dataclass(frozen=True, slots=True)
class TrainingAnswer:
    """An answer. `learned` are the spans of characters that count in the loss; empty means all of them."""

    kind: str
    text: str
    learned: tuple[tuple[int, int], ...] = ()
    is_json: bool = False


@dataclass(frozen=True, slots=True)
class TrainingTurn:
    """A user's message, with pictures as numbers, and the answer."""

    content: tuple[str | int, ...]
    answer: TrainingAnswer


@dataclass(slots=True)
class Segment:
    """Tokens that see one another. `patches`: -1 for text, else 64 times the picture's number plus the patch."""

    ids: list[int] = field(default_factory=list)
    patches: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # the token before each answer token
    answers: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  # one for each answer token ...
    groups: list[int] = field(default_factory=list)  # ... and the number of its answer

    def text(self, ids: Sequence[int]) -> None:
        """Append tokens of text."""
        self.ids += ids
        self.patches += [-1] * len(ids)

    def picture(self, number: int) -> None:
        """Append the patches of a picture."""
        self.ids += [0] * PATCHES
        self.patches += range(number * PATCHES, (number + 1) * PATCHES)


class ConversationEncoder:
    """Encodes turns by one rule for the space before a text (`style`)."""

    def __init__(self, tokenizer: Tokenizer, style: str) -> None:
        self._tokenizer, self._style = tokenizer, style

    def segment(
        self, system: str, turns: Sequence[TrainingTurn], user: str = "USER: ", assistant: str = " ASSISTANT:"
    ) -> Segment:
        """Encode a whole conversation with its BOS. `system` is empty or ends in a space."""
        out = Segment()
        out.text([BOS])
        for number, turn in enumerate(turns):
            text, opens = (user if number else system + user), True
            for part in self._content(turn):
                if isinstance(part, str):
                    text += part
                    continue
                out.text(self._encode_text(text, opens, opens and number > 0))
                out.picture(part)
                text, opens = "", False
            out.text(self._encode_text(text + assistant, opens, opens and number > 0))
            self._answer(out, turn.answer, number)
        return out

    def follow(self, turns: Sequence[TrainingTurn]) -> Segment:
        """Encode a conversation after its first `USER: <image>`: text, answer, and further turns."""
        out = Segment()
        for number, turn in enumerate(turns):
            text = "".join(part for part in self._content(turn) if isinstance(part, str))
            user = "USER: " if number else ""
            out.text(self._encode_text(user + text + " ASSISTANT:", number > 0, number > 0))
            self._answer(out, turn.answer, number)
        return out

    def _content(self, turn: TrainingTurn) -> Iterator[str | int]:
        """Yield the parts of a message, without line feeds beside pictures if the style is llama.cpp's."""
        return (part for part in turn.content if part != LINE or self._style != "separate-prefixed")

    def _encode_text(self, text: str, opens: bool, after_end: bool) -> list[int]:
        """Encode text up to a picture or an answer.

        `opens`: no picture comes before it in its turn. `after_end`: the end of an answer comes right before it."""
        if not text:
            return []
        prefix = {"separate": not after_end, "whole": opens and not after_end, "separate-prefixed": True}[self._style]
        return self._encode(text, prefix)

    def _answer(self, out: Segment, answer: TrainingAnswer, group: int) -> None:
        """Append the tokens of an answer, and mark those that are learned."""
        start = 0
        for token in [*self._encode(answer.text, not answer.is_json), EOS]:
            size = len(self._tokenizer.token_bytes(token)) if token != EOS else 1
            if not answer.learned or any(start < last and start + size > first for first, last in answer.learned):
                out.rows.append(len(out.ids) - 1)
                out.answers.append(token)
                out.kinds.append(answer.kind)
                out.groups.append(group)
            out.text([token])
            start += size

    def _encode(self, text: str, prefix: bool) -> list[int]:
        """Encode plain text, with or without the space prefix."""
        return self._tokenizer.encode(text, special=False, prefix=prefix)
