"""The errors this library raises on purpose. Everything a user can fix is a `LlavaError`; anything else is a bug.

Each names the file or argument, the field, and what is wrong: `str(error)` is `where: field: problem`, one printable
line of less than 1,000 characters. Programs read `code` instead of the words.
"""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Literal

LIMIT, MOST_NEIGHBOURS = 1000, 1000
Code = Literal[
    "invalid_value",  # anything that has no code of its own
    "unsupported_parameter",  # a field that exists elsewhere and has no effect here
    "context_length_exceeded",  # a prompt with more positions than the context, or no room for an answer
    "invalid_image",  # a picture that cannot be decoded, or cannot be had
    "unsupported_image_format",  # a file that is no PNG, JPEG, WebP, GIF or BMP
    "image_too_large",  # a picture with too many bytes or pixels
    "model_error",  # NaN or infinity inside the model
]
"""The codes of `LlavaError`: all there are."""


def printable(text: str, limit: int = LIMIT) -> str:
    """Return `text` on one line, control characters escaped, cut to `limit` characters (a file may hold anything)."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def visible(text: str) -> str:
    """Return `text` with control characters other than line ends and tabs escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean KNOWN?" for a wrong name, with the most alike of the known names; "" if none is alike."""
    alike = get_close_matches(name, known, 1)
    return f"; did you mean {alike[0]}?" if alike else ""


def nearest_file(path: str) -> str:
    """Return "; did you mean FILE?" for a path without a file, with the name in its folder most like it, or ""."""
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or ".") as entries:
            known = [os.path.join(folder, entry.name) for entry in islice(entries, MOST_NEIGHBOURS)]
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return ""
    return nearest(os.path.join(folder, name), known)


class LlavaError(Exception):
    """Report something the user can fix.

    `where` is a file or argument, `field` a part of it, `problem` what is wrong and what was expected. `code` says the
    kind of problem to programs; None takes the class's own.
    """

    code: Code = "invalid_value"

    def __init__(self, where: object, field: str, problem: str, *, code: Code | None = None) -> None:
        self.where, self.field = printable(str(where), 300), printable(field, 200)
        self.problem = printable(problem, 480)
        self.code = code or type(self).code
        super().__init__(f"{self.where}: {self.field}: {self.problem}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str], dict[str, Code]]:
        return type(self), (self.where, self.field, self.problem), {"code": self.code}


class GGUFError(LlavaError):
    """Report a model file that cannot be read, or says something impossible."""


class PairError(LlavaError):
    """Report a text file and an mmproj file that do not fit each other."""


class ImageError(LlavaError):
    """Report a picture that cannot be read or exceeds a limit."""

    code = "invalid_image"


class TemplateError(LlavaError):
    """Report a chat template that fails, exceeds a limit, or drops a part of the conversation."""


class PromptError(LlavaError):
    """Report a conversation or prompt that cannot be run: too long, wrong parts, images without slots."""


class ParameterError(LlavaError):
    """Report a setting that is out of its range or not supported."""


class NumericsError(LlavaError):
    """Report NaN or infinity inside the model; `field` names the first tensor that holds one."""

    code = "model_error"
