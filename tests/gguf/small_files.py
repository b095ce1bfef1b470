"""Provide small GGUF files, and the check that a file is refused."""

from pathlib import Path

import pytest

from llava_ref import gguf
from llava_ref.errors import GGUFError

from ..support.gguf_files import Tensor

HUGE = (1 << 64) - 1
ROW = [Tensor("a", "F32", (8,)), Tensor("b", "Q8_0", (32, 2)), Tensor("c", "F16", (5,))]
THREE = [("my_key_0", "u32", 1), ("my_key_1", "string", "x"), ("my_key_2", "f32[]", [1.0])]


def refused(path: Path, *words: str) -> GGUFError:
    """Return the error of reading `path`, after checking that it names the file and contains `words`."""
    with pytest.raises(GGUFError) as caught:
        gguf.read(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message) < 1000 and message.isprintable()
    assert all(word in message for word in words), message
    return caught.value
