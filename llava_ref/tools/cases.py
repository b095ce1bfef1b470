"""Read conversations from a folder of cases: the file of requests that `batch` takes, for the commands that compare."""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

from ..batch import CASES
from ..chat.messages import ImagePart, Message, TextPart, parse_messages
from ..errors import ParameterError, PromptError
from ..extras import absent
from ..images.parts import recognise
from .parser import Parser

URL = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class ChatCase:
    """A case: the `custom_id` of its line, and its messages, pictures decoded to the bytes of a file."""

    name: str
    messages: list[Message]

    @property
    def question(self) -> str:
        """Return the texts of the last message."""
        return " ".join(part.text for part in self.messages[-1].parts if isinstance(part, TextPart))

    def with_files(self, folder: Path) -> tuple[list[Message], tuple[Path, ...]]:
        """Write the pictures to files; return the messages with their paths, and the paths."""
        paths: list[Path] = []

        def placed(part: TextPart | ImagePart) -> TextPart | ImagePart:
            if isinstance(part, TextPart):
                return part
            assert isinstance(part.source, bytes)
            kind = recognise(part.source, f"{self.name}: {part.where}").lower()
            paths.append(folder / f"picture-{len(paths) + 1}.{kind}")
            paths[-1].write_bytes(part.source)
            return replace(part, source=paths[-1])

        messages = [replace(one, parts=tuple(map(placed, one.parts))) for one in self.messages]
        return messages, tuple(paths)


def add_cases(parser: Parser) -> None:
    """Add --cases."""
    parser.group("question").add_argument(
        "--cases",
        type=Path,
        metavar="FOLDER",
        help="ask the chats of a folder's cases.jsonl, which batch takes too, instead of -p and --image",
    )


def cases_file(args: argparse.Namespace) -> Path | None:
    """Return the file that --cases names, None without it."""
    path: Path | None = args.cases
    return path / CASES if path is not None and path.is_dir() else path


def read_cases(args: argparse.Namespace) -> list[ChatCase]:
    """Return the chats of --cases. Raises ParameterError for a line that is none, and beside -p and --image."""
    if problem := absent("server", ["starlette", "pydantic"]):
        raise ParameterError("--cases", *problem.split(": ", 1))
    from ..api.limits import Limits
    from ..batch.lines import Lines

    for flag, value in (("--prompt", args.prompt), ("--image", args.image)):
        if value:
            raise ParameterError(flag, "with --cases", "the questions and pictures are those of the cases")
    lines, found = Lines(args.cases, "", Limits(), [URL]), []
    for task in lines:
        where = f"line {task.number}"
        if task.error is not None:
            raise ParameterError(lines.path, where, str(task.error).removeprefix(f"{where}: "))
        try:
            messages = parse_messages(json.loads(task.body).get("messages"), allow_objects=False)
        except PromptError as error:
            raise ParameterError(lines.path, where, str(error)) from None
        found.append(ChatCase(str(task.custom_id), messages))
    return found
