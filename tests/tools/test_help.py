"""The help of every command: grouped options, lines for a narrow terminal, and examples that can be run."""

import re
import shlex
from importlib import import_module

import pytest

from llava_ref.tools.parser import COMMANDS, OPTION_GROUPS, command_parser

PARSERS = {name: command_parser(name) for name in COMMANDS}
LINES = [(name, line) for name in COMMANDS for line, _ in import_module(f"llava_ref.tools.{name}").EXAMPLES]
SHAPE = re.compile(r"^(\S.*):$", re.MULTILINE)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_grouped_and_fits_a_narrow_terminal(name):
    text = PARSERS[name].format_help()
    assert max(map(len, text.splitlines())) <= 80
    titles = [title for title in SHAPE.findall(text) if title in OPTION_GROUPS]
    assert titles == [title for title in OPTION_GROUPS if title in titles], "the same order everywhere"
    assert "\noptions:\n" not in text and "\npositional arguments:\n" not in text, "every argument is in a group"
    for action in PARSERS[name]._actions:
        assert action.help and action.help != "default: %(default)s", action.dest


@pytest.mark.parametrize("name, line", LINES)
def test_an_example_is_a_command_line_of_its_command(name, line):
    assert len([one for one, _ in LINES if one == name]) <= 2
    (words,) = [part for part in re.split(r"[|>]|<\(", line) if "llava-ref" in part.split()[:1]]
    program, command, *rest = shlex.split(words.rstrip(")"))
    assert (program, command) == ("llava-ref", name)
    args = PARSERS[name].parse_all(rest)
    assert args.run is import_module(f"llava_ref.tools.{name}").run
    assert re.search(r"^examples:$", PARSERS[name].format_help(), re.MULTILINE)


def test_long_examples_continue_as_a_shell_reads_them():
    text = PARSERS["patch"].format_help().partition("examples:\n")[2]
    shown = re.sub(r" \\\n +", " ", text).splitlines()[0].strip()
    assert shown == import_module("llava_ref.tools.patch").EXAMPLES[0][0] and " \\\n" in text


def test_the_quirks_are_listed_where_the_option_says():
    from llava_ref.profiles import QUIRKS

    option = next(action for action in PARSERS["generate"]._actions if action.dest == "quirk")
    assert "llava-ref inspect --help lists all" in option.help
    lines = PARSERS["inspect"].format_help().partition("quirks, each with its values:\n")[2].splitlines()
    assert {line.split()[0]: line.split()[1:] for line in lines} == {
        name: " | ".join(row.values).split() for name, row in QUIRKS.items()
    }
