"""List the commands, and make the parser of each: options in groups, examples, and suggestions for misspelt words."""

import argparse
import re
import textwrap
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from ..errors import ParameterError, nearest

COMMAND_GROUPS = {  # each command is a module of tools/ with `EXAMPLES`, `add_arguments(parser)` and `run(args)`
    "Use a model": {
        "generate": "answer one prompt, with or without pictures",
        "chat": "talk with the model, several turns",
        "demo": "let the embedded model answer about the embedded pictures",
        "completion": "print what makes a shell complete this program's words",
    },
    "Look inside": {
        "inspect": "show what a GGUF file says about itself",
        "check": "say whether a text model and an mmproj file fit each other",
        "tokenize": "turn text into token ids",
        "encode": "turn a picture into the rows that stand in for it",
        "logits": "write the logits at every position of a prompt",
        "trace": "write the arrays inside a run, by name, to a file",
        "explain": "tell one run step by step: shapes, time, memory, lines of code",
        "headroom": "report the largest number of every stage against float16's",
        "lens": "show what the model would say after each layer, as a page",
        "attend": "show where an answer looked in a picture, as a page or PNG",
        "patch": "find the rows that carry what two answers differ in, as a page",
    },
    "Compare": {
        "conform": "compare with another engine stage by stage; say why they differ",
        "diff": "compare two trace files stage by stage",
        "quality": "measure what quantisation costs, and which tensors need more bits",
        "bench": "measure the speed of every stage, and what the memory would allow",
        "apicheck": "check any OpenAI-format vision server against OpenAI's reference",
        "replay": "run a recorded run again: the same bits, or where they differ",
        "selftest": "compare every operation and kernel with its definition in float64",
    },
    "Serve": {
        "serve": "answer over HTTP: a page, OpenAI's routes, Nitro's",
        "batch": "answer a file of requests, here or on many machines",
    },
}
COMMANDS = {name: text for group in COMMAND_GROUPS.values() for name, text in group.items()}
OPTION_GROUPS = (  # the sections of a command's help, in order
    "files",
    "question",
    "sampling",
    "measurement",
    "computation",
    "semantics",
    "access",
    "limits",
    "output",
)
WIDTH = 78  # of the examples; argparse leaves two columns of 80 free too
Example = tuple[str, str]  # a command line, and what it prints


class UsageError(Exception):
    """Raised for arguments that cannot be parsed."""


class Parser(argparse.ArgumentParser):
    """A parser with named groups of options. It raises UsageError for wrong arguments instead of printing the usage."""

    def __init__(self, prog: str, **settings: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, formatter_class=raw, allow_abbrev=False, add_help=False, **settings)
        self._named = {title: self.add_argument_group(title) for title in OPTION_GROUPS}

    def group(self, title: str) -> argparse._ArgumentGroup:
        """Return a section of the help; it is shown if it has options."""
        return self._named[title]

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

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not among the choices, and suggest one that is alike."""
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            problem = f"{value!r}: unknown, expected one of {', '.join(known)}{nearest(str(value), known)}"
            raise argparse.ArgumentError(action, problem)


def command_parser(name: str) -> Parser:
    """Return the parser of one command; no other command is imported. Raises ParameterError."""
    if name not in COMMANDS:
        problem = f"unknown, expected one of {', '.join(COMMANDS)}{nearest(name, COMMANDS)}"
        raise ParameterError(repr(name), "command", problem)
    text = COMMANDS[name]
    tool = import_module(f".{name}", __package__)
    parser = Parser(f"llava-ref {name}", description=f"{text[0].upper()}{text[1:]}.", epilog=examples(tool.EXAMPLES))
    tool.add_arguments(parser)
    parser.set_defaults(run=tool.run)
    parser.group("output").add_argument("-h", "--help", action="help", help="show this help, and stop")
    parser.usage = usage(parser)
    return parser


def usage(parser: argparse.ArgumentParser) -> str:
    """Return a command's usage in one line: the arguments that must be there, and [options] for the rest."""
    needed = [_needed(action) for action in parser._actions if action.required or not action.option_strings]
    return " ".join([parser.prog, "[options]", *needed])


def _needed(action: argparse.Action) -> str:
    value = str(action.metavar or action.dest)
    if action.option_strings:
        return f"{action.option_strings[0]} {value}"
    return f"[{value}]" if action.nargs == "?" else value


def examples(lines: Sequence[Example]) -> str:
    """Return examples as the end of a command's help: each command line, and what it prints below it."""
    text = ["examples:"]
    for line, prints in lines:
        text += [*_wrapped(line), *textwrap.wrap(prints, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return "\n".join(text)


def _wrapped(line: str) -> list[str]:
    """Break a long command line between its words, as a shell reads it."""
    rows = [" "]
    for word in re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", line):
        if len(rows[-1]) + len(word) > WIDTH - 3:
            rows[-1] += " \\"
            rows.append("   ")
        rows[-1] += f" {word}"
    return rows
