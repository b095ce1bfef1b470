"""What the README says is so."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from llava_ref.cli import main
from llava_ref.profiles import PROFILES, QUIRKS, describe
from llava_ref.tools.parser import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUIRK_PAGE = (ROOT / "docs" / "quirks.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_example_runs(capsys):
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        exec(compile(block, "README.md", "exec"), names)
    assert "'image_tokens': 64" in capsys.readouterr().out


def test_the_demo_says_what_the_readme_shows(capsys):
    shown = re.search(r"```text\n(colour\.png.*?)^```$", README, re.DOTALL | re.MULTILINE)[1]
    assert main(["demo"]) == 0
    demo = re.sub(r"\d+\.?\d* (m?s)\b", r"N \1", capsys.readouterr().out)
    blocks = re.sub(r"\d+\.?\d* (m?s)\b", r"N \1", shown).strip().split("\n\n")
    assert len(blocks) == 5 and "..." in blocks
    assert set(blocks) - {"..."} <= set(demo.strip().split("\n\n")), "make pictures writes it again"


def test_pictures_are_there_and_small():
    sources = re.findall(r'<img src="([^"]+)"', README)
    assert len(sources) == 2 and README.count("<img") == 2
    for source in sources:
        assert (ROOT / source).read_bytes().startswith(b"RIFF") and (ROOT / source).stat().st_size < 150_000


def test_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make (\w+)", README)) - {"pages"}
    assert {"demo", "test", "conformance", "pictures"} <= targets
    assert targets <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    assert "--editable '.[server,fast]'" in makefile.partition(".venv/.demo: ")[2].partition("\n\n")[0], (
        "the page is one away"
    )
    assert set(re.findall(r"^llava-ref ([a-z]+)", README, re.MULTILINE)) <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    table = README[README.index("| package | for |") :]
    assert set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE)) - {"package"} == wanted


def test_the_table_of_quirks_is_the_code():
    assert f"they differ in {len(QUIRKS)} points" in README
    written = QUIRK_PAGE.split("<!-- quirks: written by make quirks -->\n")[1].partition("\n\n")[0]
    assert written == runpy.run_path(str(ROOT / "docs" / "tables" / "quirks.py"))["table"](), (
        "make quirks writes it again"
    )


@pytest.mark.parametrize("column, profile", list(enumerate(PROFILES, start=1)))
def test_the_table_of_quirks_states_every_profile(column, profile):
    rows = [line.strip("| ").split(" | ") for line in QUIRK_PAGE.splitlines() if re.match(r"\| `\w+`", line)]
    stated = {re.match(r"`(\w+)`", row[0])[1]: re.match(r"`([\w-]+)`", row[column])[1] for row in rows}
    assert stated == describe(PROFILES[profile])


def test_the_tree_names_what_is_there():
    tree = README[README.index("## How it is laid out") :]
    named = re.findall(r"^(\w+/) ", tree[: tree.index("Dependencies")], re.MULTILINE)
    assert {"llava_ref/", "kernels/", "conformance/", "training/", "tests/"} == set(named)
    assert all((ROOT / name).is_dir() for name in named)
