"""schemathesis makes requests of the server's own description, right ones and wrong ones."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import httpx2

from .running import Process

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,unsupported_method,ignored_auth"
)
OTHER_PATHS = "unloadmodel|^/chat|^/completions|^/models|/openai/|/inference/|chat_completion"  # aliases; unloading


def test_the_description_is_true(tmp_path):
    """No 5xx, no status or content type that is not described, nothing wrong accepted. What is right may be refused:
    whether a picture is one, and whether a conversation fits the context, no schema says."""
    with Process("--api-key", "key", "--ctx-size", "48") as server:
        command = [str(Path(sys.executable).with_name("st")), "run", f"{server.url}/openapi.json"]
        command += ["--header", "Authorization: Bearer key", "--checks", CHECKS, "--max-examples", "5", "--seed", "1"]
        command += ["--exclude-path-regex", OTHER_PATHS, "--phases", "coverage,fuzzing", "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-5000:]
        assert "generated" in done.stdout
        assert httpx2.get(f"{server.url}/health").status_code == 200
