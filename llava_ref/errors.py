"""The errors this library raises on purpose. Everything a user can mend is a `LlavaError`; anything else is a bug.

Each names the file or argument, the field, and what is wrong: `str(error)` is `where: field: problem`, one printable
line of less than 1,000 characters.
"""

LIMIT = 1000


def printable(text: str, limit: int = LIMIT) -> str:
    """`text` on one line, control characters escaped, cut to `limit` characters (a file may hold anything)."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def visible(text: str) -> str:
    """`text` with control characters other than line ends and tabs escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


class LlavaError(Exception):
    """Something the user can mend. `where` is a file or argument, `field` what in it, `problem` what was expected."""

    def __init__(self, where: object, field: str, problem: str) -> None:
        self.where, self.field = printable(str(where), 300), printable(field, 200)
        self.problem = printable(problem, 480)
        super().__init__(f"{self.where}: {self.field}: {self.problem}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.where, self.field, self.problem)


class GGUFError(LlavaError):
    """A model file that cannot be read, or says something impossible."""


class PairError(LlavaError):
    """A text file and an mmproj file that do not fit each other."""


class ImageError(LlavaError):
    """A picture that cannot be read or is over a limit."""


class TemplateError(LlavaError):
    """A chat template that fails, or goes over a limit, or drops a part of the conversation."""


class PromptError(LlavaError):
    """A conversation or prompt that cannot be run: too long, wrong parts, images without slots."""


class ParameterError(LlavaError):
    """A setting out of its range or not supported."""


class NumericsError(LlavaError):
    """NaN or infinity inside the model; `field` names the first tensor that holds one."""
