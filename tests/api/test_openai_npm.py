"""Tests the server with OpenAI's npm package, if installed: npm install --no-save --prefix tests/api openai"""

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.api import respond

from .running import PICTURES

HERE = Path(__file__).parent
pytestmark = pytest.mark.oracle
absent = shutil.which("node") is None or not (HERE / "node_modules" / "openai").is_dir()


@pytest.mark.skipif(absent, reason="no Node.js, or no npm package openai in tests/api")
def test_openais_npm_package(server, monkeypatch):
    monkeypatch.setattr(respond, "PROGRESS_SECONDS", 0.001)
    command = ["node", str(HERE / "openai_npm.mjs"), server.url, str(PICTURES / "count.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
