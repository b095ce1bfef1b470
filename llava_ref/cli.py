"""Run a command of the command line, and turn errors into exit codes. Uses argparse to need no other package.

Exit codes: 0 done, 1 a comparison failed, 2 an error that the user can fix, 130 interrupted, 141 output pipe closed.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import NoReturn

from .errors import LlavaError, ParameterError, nearest, printable

GROUPS = {  # each command is a module of tools/ with `add_arguments(parser)` and `run(args) -> exit code`
    "Ask": {
        "generate": "answer one prompt, with or without pictures",
        "chat": "talk with the model, several turns",
        "serve": "answer over HTTP: a page, OpenAI's routes, Nitro's",
        "demo": "let the embedded model answer about the embedded pictures",
    },
    "Look at files": {
        "inspect": "show what a GGUF file says about itself",
        "check": "say whether a text model and an mmproj file fit each other",
        "tokenize": "turn text into token ids",
    },
    "Look inside a run": {
        "encode": "turn a picture into the rows that stand in for it",
        "logits": "write the logits at every position of a prompt",
        "trace": "write the arrays inside a run, by name, to a file",
        "lens": "show what the model would say after each layer, as a page",
        "attend": "show where an answer looked in a picture, as a page or PNG",
        "patch": "find the rows that carry what two answers differ in, as a page",
    },
    "Compare": {
        "conform": "compare with another engine stage by stage, and say why they differ",
        "diff": "compare two trace files stage by stage",
        "quality": "measure what quantisation costs, and which tensors need more bits",
    },
    "Measure": {
        "bench": "measure the speed of every stage, and what the memory would allow",
        "selftest": "compare every operation and kernel with its definition in float64",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}
PLANNED = ("batch", "apicheck", "explain", "replay")
START = """
To begin:
  llava-ref demo
  llava-ref generate --image cat.jpg -p "What is this?"
  llava-ref COMMAND --help

Without -m and --mmproj the small pair inside the package is used.
"""


class UsageError(Exception):
    """Raised for arguments that cannot be parsed."""


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError for wrong arguments instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))

    def parse_all(self, arguments: list[str]) -> argparse.Namespace:
        """Parse arguments, and leave none over. Raises UsageError, which suggests an option for a misspelt one."""
        args, left = self.parse_known_args(arguments)
        if left:
            wrong = next((word for word in left if word.startswith("-")), left[0])
            known = nearest(wrong.partition("=")[0], self._option_string_actions)
            raise UsageError(f"unrecognized arguments: {' '.join(left)}{known}")
        return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Only a bug leaves a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # characters that the terminal lacks are escaped, and never an error
            stream.reconfigure(errors="backslashreplace")
    try:
        args = _parsed(arguments or ["--help"])
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except (LlavaError, UsageError) as error:
        return _fail(str(error))
    except BrokenPipeError:
        return 141
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: file: {error.strerror or error}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, told by its name because torch may not be there
            raise
        return _fail(f"device: memory: {str(error).partition('. GPU')[0]}")
    except KeyboardInterrupt:
        return 130
    finally:
        _give_up_output()


def versions() -> str:
    """Return the versions of this package, Python, torch, numpy and the platform, one a line. Imports none of them."""
    packages = {name: _version(name) for name in ("llava-ref", "torch", "numpy")}
    rows = {"llava-ref": packages.pop("llava-ref"), "python": platform.python_version(), **packages}
    return "\n".join(f"{name} {version}" for name, version in {**rows, "platform": platform.platform()}.items())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _give_up_output() -> None:
    """Discard output that cannot be written. The interpreter would try again at exit, and print an error."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    """Print an error of one line; return its exit code."""
    print(f"error: {printable(message)}", file=sys.stderr)
    return 2


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line. Raises UsageError and ParameterError."""
    first, *rest = arguments
    if not first.startswith("-"):
        return _command_parser(first).parse_all(rest)
    if first not in ("-h", "--help", "--version"):
        raise ParameterError(first, "option", "expected a command before it, as in llava-ref generate --help")
    return _own_parser().parse_all(arguments)


def _own_parser() -> Parser:
    """Return the parser of `llava-ref --help` and `llava-ref --version`."""
    parser = Parser(
        prog="llava-ref",
        usage="llava-ref COMMAND ...",
        description="Runs LLaVA-style models from GGUF files, and shows what happens inside.",
        epilog=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=versions(), help="show the versions of this, Python, torch and numpy"
    )
    return parser


def _command_parser(name: str) -> Parser:
    """Return the parser of one command; no other command is imported. Raises ParameterError."""
    if name in PLANNED:
        raise ParameterError(name, "command", "planned, not there yet; llava-ref --help lists those that are")
    if name not in COMMANDS:
        problem = f"unknown, expected one of {', '.join(COMMANDS)}{nearest(name, COMMANDS)}"
        raise ParameterError(repr(name), "command", problem)
    text = COMMANDS[name]
    parser = Parser(prog=f"llava-ref {name}", description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    tool = import_module(f".tools.{name}", __package__)
    tool.add_arguments(parser)
    parser.set_defaults(run=tool.run)
    return parser


def _overview() -> str:
    """Return the list of commands by group, and how to begin."""
    lines = []
    for title, commands in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:10}{text}" for name, text in commands.items()), ""]
    return "\n".join(lines) + START
