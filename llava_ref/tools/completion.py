"""`completion`: print a script that makes bash, zsh or fish complete commands, options, values and files.

The scripts are made from the parsers of all commands, so that they know what `--help` knows. A shell runs the printed
script alone, and not this program, when a word is completed.
"""

import argparse
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..chat.templates import TEMPLATES
from ..profiles import QUIRKS
from .parser import COMMANDS, Example, Parser, command_parser

EXAMPLES: Sequence[Example] = (
    ("source <(llava-ref completion bash)", "nothing; from then on Tab completes. ~/.bashrc or ~/.zshrc may hold it"),
    (
        "llava-ref completion fish > ~/.config/fish/completions/llava-ref.fish",
        "nothing; fish reads the file at its next start",
    ),
)
VALUES: dict[str, Sequence[str]] = {  # by destination: values of options that argparse has no choices for
    "quirk": [f"{name}={value}" for name, row in QUIRKS.items() for value in row.values],
    "template": sorted(TEMPLATES),
    "against": ["llama.cpp", "hf"],
}
OWN = {"--help": "show the commands", "--version": "show the versions"}


@dataclass(frozen=True, slots=True)
class Completed:
    """Holds an option, or with no names a positional argument, and what its value may be."""

    names: tuple[str, ...]
    about: str
    metavar: str
    takes_value: bool
    values: tuple[str, ...]
    files: bool
    repeatable: bool


def add_arguments(parser: Parser) -> None:
    parser.group("files").add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")


def run(args: argparse.Namespace) -> int:
    table = {name: completed(command_parser(name)) for name in COMMANDS}
    print(SHELLS[args.shell](table), end="")
    return 0


def completed(parser: argparse.ArgumentParser) -> list[Completed]:
    """List what can be completed behind one command."""
    return [
        Completed(
            names=tuple(action.option_strings),
            about=re.split(r"; | \(", (action.help or "").replace("%%", "%"))[0],
            metavar=str(action.metavar or action.dest),
            takes_value=action.nargs != 0,
            values=tuple(map(str, action.choices or VALUES.get(action.dest, ()))),
            files=action.type is Path or (action.dest in ("template", "against") and not action.choices),
            repeatable=isinstance(action.default, list),
        )
        for action in parser._actions
    ]


Table = dict[str, list[Completed]]


def bash(table: Table) -> str:
    """Write the script for bash, which splits words at "=": they are joined first, and the answers cut again."""
    commands = " ".join([*table, *OWN])
    cases = "\n".join(f"    {name})\n{_bash_case(words)}        ;;" for name, words in table.items())
    return BASH.replace("@COMMANDS@", commands).replace("@CASES@", cases)


def _bash_case(words: Sequence[Completed]) -> str:
    """Write what may stand behind one command: options, the values of each, and what has no option."""
    options = " ".join(name for word in words for name in word.names)
    lines = [f"options={shlex.quote(options)}", 'case "$before" in']
    for word in (word for word in words if word.names and word.takes_value):
        lines.append(f"{'|'.join(word.names)}) {_bash_values(word)} ;;")
    lines += [f"*) {_bash_values(word)}; own=1 ;;" for word in words if not word.names][:1]
    return "".join(f"        {line}\n" for line in [*lines, "esac"])


def _bash_values(word: Completed) -> str:
    return f"value=1 files={int(word.files)} values={shlex.quote(' '.join(word.values))}"


BASH = """\
# Completion of llava-ref for bash, printed by `llava-ref completion bash`.
_llava_ref() {
    local at=$COMP_CWORD typed="${COMP_WORDS[COMP_CWORD]}" before options="" values="" value=0 files=0 own=0 start="" i
    while [[ $at -gt 1 && ( ${COMP_WORDS[at]} == "=" || ${COMP_WORDS[at-1]} == "=" ) ]]; do
        at=$((at - 1)); typed="${COMP_WORDS[at]}$typed"
    done
    before="${COMP_WORDS[at-1]}"
    local whole="$typed"
    if [[ $typed == --*=* ]]; then before="${typed%%=*}"; start="$before="; typed="${typed#*=}"; fi
    COMPREPLY=()
    if [[ $at -eq 1 ]]; then COMPREPLY=($(compgen -W "@COMMANDS@" -- "$typed")); return; fi
    case "${COMP_WORDS[1]}" in
@CASES@
    *) return ;;
    esac
    if [[ $typed == -* && -z $start && ( $value -eq 0 || $own -eq 1 ) ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$typed")); return
    fi
    if [[ $value -eq 0 ]]; then
        [[ -z $start ]] && COMPREPLY=($(compgen -W "$options" -- "$typed"))
        return
    fi
    local IFS=$'\\n'
    local found=($(IFS=' '; compgen -W "$values" -- "$typed"))
    if [[ $files -eq 1 ]]; then compopt -o filenames 2> /dev/null; found+=($(compgen -f -- "$typed")); fi
    local cut=""
    if [[ $COMP_WORDBREAKS == *=* && $whole == *=* ]]; then cut="${whole%"${whole##*=}"}"; fi
    for i in "${!found[@]}"; do found[i]="$start${found[i]}"; COMPREPLY+=("${found[i]#"$cut"}"); done
}
complete -F _llava_ref llava-ref
"""


def zsh(table: Table) -> str:
    """Write the script for zsh: one call of `_arguments` for each command."""
    commands = " ".join(_quoted(f"{name}:{COMMANDS[name]}") for name in table)
    cases = "\n".join(
        f"    {name}) _arguments -s {' '.join(spec for word in words for spec in _zsh_specs(word))} ;;"
        for name, words in table.items()
    )
    own = " ".join(_quoted(f"{name}:{text}") for name, text in OWN.items())
    return ZSH.replace("@COMMANDS@", f"{commands} {own}").replace("@CASES@", cases)


def _zsh_specs(word: Completed) -> list[str]:
    """Write an argument as `_arguments` takes it; an option with two names in two specifications."""
    about = re.sub(r"([\\\[\]:])", r"\\\1", word.about)
    value = ""
    if word.takes_value:
        listed = f"({' '.join(word.values)})"
        does = "_files" if word.files else " "
        if word.files and word.values:
            does = f"{{compadd -- {' '.join(word.values)}; _files}}"
        elif word.values:
            does = listed
        value = f":{word.metavar.replace(':', '')}:{does}"
    if not word.names:
        return [_quoted(f"*{value}")] if word.files else [_quoted(value)]
    once = "*" if word.repeatable else f"({' '.join(word.names)})"
    return [_quoted(f"{once}{name}[{about}]{value}") for name in word.names]


ZSH = """\
#compdef llava-ref
# Completion of llava-ref for zsh, printed by `llava-ref completion zsh`.
_llava_ref() {
    local -a commands=(@COMMANDS@)
    if (( CURRENT == 2 )); then _describe command commands; return; fi
    local command=$words[2]
    shift words; (( CURRENT-- ))
    case $command in
@CASES@
    esac
}
if [[ $funcstack[1] == _llava_ref ]]; then _llava_ref "$@"; else compdef _llava_ref llava-ref; fi
"""


def fish(table: Table) -> str:
    """Write the script for fish: one call of `complete` for each command and option."""
    lines = ["# Completion of llava-ref for fish, printed by `llava-ref completion fish`.", "complete -c llava-ref -f"]
    first = "complete -c llava-ref -n __fish_use_subcommand"
    lines += [f"{first} -a {name} -d {_fish(text)}" for name, text in COMMANDS.items()]
    lines += [f"{first} -l {name.removeprefix('--')} -d {_fish(text)}" for name, text in OWN.items()]
    for name, words in table.items():
        lines += [f"complete -c llava-ref -n '__fish_seen_subcommand_from {name}' {_fish_word(word)}" for word in words]
    return "\n".join(lines) + "\n"


def _fish_word(word: Completed) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in word.names]
    value = [] if not word.takes_value else ["-r -F"] if word.files else ["-x"] if names else []
    if not names and word.files:
        value = ["-F"]
    values = [f"-a {_fish(' '.join(word.values))}"] if word.values else []
    return " ".join([*names, *value, *values, f"-d {_fish(word.about)}"])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[Table], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
