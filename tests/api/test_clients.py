"""The lines of docs/clients.md run in their clients and print what the page shows.

`make conformance` installs the clients: those in Python into .venv/clients and .venv/llama-index, those in JavaScript
into tests/api/node_modules."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from .running import PICTURES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = (ROOT / "docs" / "clients.md").read_text()
ADDRESS = "http://127.0.0.1:3928"
PACKAGES = HERE / "node_modules"
EXAMPLE = re.compile(r"^```(sh|python|js)\n((?:(?!```).*\n)*)```\n\n```text\n((?:(?!```).*\n)*)```$", re.MULTILINE)
SECTIONS = {section.partition("\n")[0]: section for section in PAGE.split("\n## ")[1:]}
EXAMPLES = [(client, *example) for client, section in SECTIONS.items() for example in EXAMPLE.findall(section)]


def programs(client: str) -> Path:
    return ROOT / ".venv" / ("llama-index" if client == "LlamaIndex" else "clients") / "bin"


def command(client: str, language: str, code: str, folder: Path) -> list[str]:
    """Write an example to a file of `folder`; returns the command that runs it, or skips the test."""
    if language == "sh":
        if "llm " in code and not programs(client).is_dir():
            pytest.skip("the clients are not installed")
        (folder / "example.sh").write_text(code)
        return ["bash", "-eu", "-o", "pipefail", "example.sh"]
    if language == "js":
        packages = re.findall(r'from "(?!node:)((?:@[\w-]+/)?[a-z][\w-]*)', code)
        if not shutil.which("node") or not all((PACKAGES / name).is_dir() for name in packages):
            pytest.skip("no Node.js, or its packages are not installed")
        (folder / "node_modules").symlink_to(PACKAGES)
        (folder / "example.mjs").write_text(code)
        return ["node", "example.mjs"]
    if not programs(client).is_dir():
        pytest.skip("the client is not installed")
    (folder / "example.py").write_text(code)
    return [str(programs(client) / "python"), "example.py"]


@pytest.mark.oracle
@pytest.mark.parametrize("client, language, code, shown", EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_a_client_prints_what_the_page_shows(server, tmp_path, client, language, code, shown):
    assert ADDRESS in code
    (tmp_path / "colour.png").write_bytes((PICTURES / "colour.png").read_bytes())
    line = command(client, language, code.replace(ADDRESS, server.url), tmp_path)
    path = f"{programs(client)}{os.pathsep}{os.environ['PATH']}"
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HAYSTACK_TELEMETRY_ENABLED": "False"}
    environment = os.environ | quiet | {"PATH": path, "HOME": str(tmp_path), "LLM_USER_PATH": str(tmp_path)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, shown), done.stderr


def test_every_client_of_the_table_has_lines_that_run():
    assert [client for client, *_ in EXAMPLES] == [*SECTIONS][:-2], "the last two sections show what runs by hand"
    assert len(re.findall(r"^\| .*(?:install|curl)", PAGE, re.MULTILINE)) - 1 == len(EXAMPLES) == 13
