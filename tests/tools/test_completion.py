"""Completion as real shells do it: which words they offer for a line that ends where the user pressed Tab."""

import shutil
import subprocess
from pathlib import Path

import pytest

from llava_ref.cli import main
from llava_ref.profiles import QUIRKS
from llava_ref.tools.parser import COMMANDS

GELU = [f"gelu={value}" for value in QUIRKS["gelu"].values]
LINES = {  # what is typed -> what is offered
    "llava-ref ": [*COMMANDS, "--help", "--version"],
    "llava-ref gen": ["generate"],
    "llava-ref generate --ba": ["--backend"],
    "llava-ref generate --backend ": ["torch", "numpy"],
    "llava-ref generate -p hello --prof": ["--profile"],
    "llava-ref generate --quirk gelu": GELU,
    "llava-ref generate --quirk gelu=": GELU,
    "llava-ref generate --image ca": ["cat.jpg", "cat two.txt"],
    "llava-ref generate --template vicu": ["vicuna"],
    "llava-ref inspect c": ["cat.jpg", "cat two.txt"],
    "llava-ref conform --against ": ["llama.cpp", "hf", "cat.jpg", "cat two.txt", "other.png"],
    "llava-ref bench --against ": ["llama.cpp"],
    "llava-ref completion ": ["bash", "zsh", "fish"],
    "llava-ref generate --temp ": [],
}
ASK = """
ask() {  # bash hands a function the line cut at blanks and at "="
    COMP_WORDS=()
    local word
    for word in $1; do
        while [[ $word == *=* ]]; do
            [[ -n ${word%%=*} ]] && COMP_WORDS+=("${word%%=*}")
            COMP_WORDS+=("="); word="${word#*=}"
        done
        [[ -n $word ]] && COMP_WORDS+=("$word")
    done
    [[ $1 == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    $(complete -p llava-ref | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    printf '> %s\\n' "$1"
    for word in "${COMPREPLY[@]}"; do printf '%s\\n' "$word"; done
}
"""


@pytest.fixture
def script(tmp_path, tmp_path_factory, capsys, monkeypatch):
    """Writes a shell's script; the folder has three files to complete."""
    for name in ("cat.jpg", "cat two.txt", "other.png"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)

    def write(shell):
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        assert main(["completion", shell]) == 0
        path = tmp_path_factory.mktemp("script") / shell
        path.write_text(capsys.readouterr().out)
        return path

    return write


def offered(command, text=""):
    """Returns what each line is offered: the output has "> " before a line, and the words below it."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    blocks = [block.split("\n") for block in done.stdout.removeprefix("> ").split("\n> ")]
    return {line: [word for word in words if word] for line, *words in blocks}


def test_bash(script):
    more = {  # readline keeps what stands before the last "=": only the rest is offered
        "llava-ref generate --quirk gelu=t": ["tanh"],
        "llava-ref generate --quirk=gelu=t": ["tanh"],
        "llava-ref generate --backend=n": ["numpy"],
        "llava-ref generate --image=cat.": ["cat.jpg"],
    }
    lines = LINES | {"llava-ref generate --quirk gelu=": list(QUIRKS["gelu"].values)} | more
    asked = "".join(f'ask "{line}"\n' for line in lines)
    found = offered(["bash", "--norc"], f"source {script('bash')}\n{ASK}{asked}")
    assert {line: sorted(words) for line, words in found.items()} == {line: sorted(lines[line]) for line in lines}


def test_zsh(script):
    lines = {line: LINES[line] for line in ("llava-ref generate --backend ", "llava-ref generate --quirk gelu=")}
    lines["llava-ref inspect cat."] = ["cat.jpg"]
    found = offered(["zsh", "-f", str(Path(__file__).parent / "capture.zsh"), str(script("zsh")), *lines])
    assert {line: " ".join(words).split() for line, words in found.items()} == lines


def test_fish(script):
    asked = "".join(f"echo '> {line}'; complete -C '{line}'\n" for line in LINES)
    found = offered(["fish", "--no-config"], f"source {script('fish')}\n{asked}")
    named = {line: {word.partition("\t")[0] for word in words} for line, words in found.items()}
    named["llava-ref "] |= {"--help", "--version"}  # fish offers options after a dash
    assert named == {line: set(words) for line, words in LINES.items()}


def test_the_scripts_know_every_option(script, capsys):
    main(["completion", "fish"])
    text = capsys.readouterr().out
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        flags = {word.strip(",") for word in capsys.readouterr().out.split() if word.startswith("--")}
        for flag in flags - {"--help"}:
            assert f"from {name}' " in text and f" -l {flag[2:].split('=')[0]} " in text
