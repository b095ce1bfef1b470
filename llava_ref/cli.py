"""The command line: which command, and what becomes of errors. argparse, because the standard library is enough.

Exit codes: 0 done, 1 a comparison failed, 2 something the user can mend, 130 interrupted, 141 nobody reads the output.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from .errors import LlavaError, printable

COMMANDS = {  # each is a module of tools/ with `add_arguments(parser)` and `run(args) -> exit code`
    "generate": "answer one prompt, with or without pictures",
    "chat": "talk with the model, several turns",
    "demo": "the embedded model looks at the embedded pictures",
    "inspect": "show what a GGUF file says about itself",
    "check": "say whether a text model and an mmproj file fit each other",
    "tokenize": "text to token ids",
    "encode": "a picture to the rows that stand in for it",
    "logits": "logits at every position of a prompt",
    "lens": "what the model would say after each layer, as a page",
    "attend": "where an answer looked in a picture and what it needed, as a page or a PNG",
    "patch": "parts of one run put into another: what carries the difference of two answers, as a page",
    "trace": "the arrays inside a run, by name, to a file",
    "diff": "two trace files, stage by stage",
    "serve": "the HTTP server: OpenAI's interface, and Nitro's",
    "conform": "this project and another engine, stage by stage, and why they differ",
    "quality": "what quantisation costs, and which tensors deserve more bits",
}


class UsageError(Exception):
    """Arguments that cannot be parsed."""


class Parser(argparse.ArgumentParser):
    """Wrong arguments raise instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code. Only bugs leave a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal cannot show is escaped, never an error
            stream.reconfigure(errors="backslashreplace")
    try:
        args = _parser(arguments).parse_args(arguments)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except (LlavaError, UsageError) as error:
        return _fail(str(error))
    except BrokenPipeError:
        return 141
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: file: {error.strerror or error}")
    except KeyboardInterrupt:
        return 130
    finally:
        _give_up_output()


def _give_up_output() -> None:
    """What cannot be written now would be tried again, and complained about, at the interpreter's exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return 2


def _parser(arguments: list[str]) -> Parser:
    """The parser; only the command that was named is imported and gets its options."""
    parser = Parser(
        prog="llava-ref", description="Runs LLaVA-style vision-language models from GGUF files.", allow_abbrev=False
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if arguments[:1] == [name]:
            tool = import_module(f".tools.{name}", __package__)
            tool.add_arguments(command)
            command.set_defaults(run=tool.run)
    return parser
