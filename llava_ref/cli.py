"""Run a command of the command line, and turn errors into exit codes. Uses argparse to need no other package.

Exit codes: 0 done, 1 a comparison failed, 2 an error that the user can fix, 130 interrupted, 141 output pipe closed.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from .errors import LlavaError, ParameterError, printable
from .tools.parser import COMMAND_GROUPS, UsageError, command_parser
from .versions import versions

START = """
To begin:
  llava-ref demo
  llava-ref generate --image cat.jpg -p "What is this?"
  llava-ref COMMAND --help

Without -m and --mmproj the small pair inside the package is used.
"""


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
    except UsageError as error:
        return _fail(str(error))
    except BrokenPipeError:
        return 141
    except (LlavaError, OSError) as error:
        from .tools.output import explained

        return _fail(explained(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, told by its name because torch may not be there
            raise
        return _fail(f"device: memory: {str(error).partition('. GPU')[0]}")
    except KeyboardInterrupt:
        return 130
    finally:
        _give_up_output()


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
        args = command_parser(first).parse_all(rest)
        args.command = shlex.join(["llava-ref", *arguments])
        return args
    if first not in ("-h", "--help", "--version"):
        raise ParameterError(first, "option", "expected a command before it, as in llava-ref generate --help")
    return _own_parser().parse_args(arguments)


def _own_parser() -> argparse.ArgumentParser:
    """Return the parser of `llava-ref --help` and `llava-ref --version`."""
    parser = argparse.ArgumentParser(
        prog="llava-ref",
        usage="llava-ref COMMAND ...",
        description="Runs LLaVA-style models from GGUF files, and shows what happens inside.",
        epilog=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=_versions(), help="show the versions of this, Python, torch and numpy"
    )
    return parser


def _versions() -> str:
    return "\n".join(f"{name} {version}" for name, version in versions().items())


def _overview() -> str:
    """Return the list of commands by group, and how to begin."""
    lines = []
    for title, commands in COMMAND_GROUPS.items():
        lines += [f"{title}:", *(f"  {name:12}{text}" for name, text in commands.items()), ""]
    return "\n".join(lines) + START
