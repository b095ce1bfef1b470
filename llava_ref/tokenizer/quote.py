"""Text that users typed, written so that no part of it can be read as a control token or as an image slot.

Every character that occurs in a control token's text, or in "<image>", is moved to a private-use code point of its
own. A quoted text then shares no character with any control token, so however a template cuts it and joins it, with
itself or with the template's own words, no control token found in the result holds a character that a user typed.
`Tokenizer.encode` looks for control tokens in the quoted prompt, then moves the characters back and reads the rest.

Letters are moved as well as punctuation: with punctuation alone a template that writes "<|" before a user's word and
"|>" after it would let the user name the token.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import PromptError

IMAGE = "<image>"
PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
ANY_PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")


@dataclass(frozen=True, slots=True)
class Quote:
    """Moves each character of `characters` to the code point `base` + its place, and back."""

    characters: str
    base: int

    @classmethod
    def over(cls, texts: Iterable[str], control_texts: Iterable[str]) -> "Quote":
        """A quote for a prompt made of `texts`: what users typed, and the template's source.

        `control_texts` are the texts of the tokens that users must not be able to write. Raises PromptError where the
        texts leave no private-use code points free."""
        control = list(control_texts)
        used = {ord(c) for text in (*texts, *control) for c in ANY_PRIVATE.findall(text)}
        characters = "".join(sorted({c for text in (IMAGE, *control) for c in text}))
        for block in PRIVATE:
            start = block.start
            while start + len(characters) <= block.stop:
                taken = max((p for p in range(start, start + len(characters)) if p in used), default=None)
                if taken is None:
                    return cls(characters, start)
                start = taken + 1
        raise PromptError(
            "messages", "text", "uses so many private-use characters that none are left to quote text with"
        )

    def quote(self, text: str) -> str:
        return text.translate({ord(c): self.base + i for i, c in enumerate(self.characters)})

    def unquote(self, text: str) -> str:
        """The text with every quoted character moved back. It has the same length."""
        return text.translate({self.base + i: c for i, c in enumerate(self.characters)})
