"""Quote the text that users typed, so that it can never be read as a control token or as an image slot.

Quoting maps every character that occurs in a control token's text, or in "<image>", to a private-use code point of its
own. Quoted text then shares no character with any control token. A template may cut it, and join it to itself or to the
template's own words, and still no control token in the result contains a character that a user typed.
`Tokenizer.encode` searches the quoted prompt for control tokens, then unquotes and encodes the rest.

Letters are mapped as well as punctuation. Otherwise a template that writes "<|" before a user's word and "|>" after it
would let the user name the token.
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
    """Maps each character of `characters` to the code point `base` + its index, and back."""

    characters: str
    base: int

    @classmethod
    def over(cls, texts: Iterable[str], control_texts: Iterable[str]) -> "Quote":
        """Return a quote for a prompt made of `texts`: those that users typed, and the template's source.

        `control_texts` are the texts of the tokens that users must not be able to write. Raises PromptError if the
        texts leave too few private-use code points free."""
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
        problem = "uses so many private-use characters that none are left to quote text with"
        raise PromptError("messages", "text", problem)

    def quote(self, text: str) -> str:
        """Quote `text`. The result has the same length."""
        return text.translate({ord(c): self.base + i for i, c in enumerate(self.characters)})

    def unquote(self, text: str) -> str:
        """Restore every quoted character of `text`. The result has the same length."""
        return text.translate({self.base + i: c for i, c in enumerate(self.characters)})
