"""Provide conversations of one message, and the ways to parse them."""

import base64

import pytest

from llava_ref.chat.messages import parse_messages
from llava_ref.errors import PromptError

PNG = bytes([0xFB, 0xEF, 0xBE, 0xFF, 0xFF, 0xFF, *range(31)])  # base64 of it has + and /
B64 = base64.b64encode(PNG).decode()
assert "+" in B64 and "/" in B64 and B64.endswith("==")


def user(*parts):
    """Make a conversation of one user message."""
    return [{"role": "user", "content": list(parts)}]


def parse(*parts, **settings):
    """Parse one user message; return its parts."""
    (message,) = parse_messages(user(*parts), **settings)
    return message.parts


def refuse(messages, **settings):
    """Return the message of the PromptError for `messages`."""
    with pytest.raises(PromptError) as caught:
        parse_messages(messages, **settings)
    return str(caught.value)
