"""Tests /openapi.json against the server: schemathesis generates valid and invalid requests from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import httpx2

from llava_ref.api.limits import MAX_CHOICES
from llava_ref.api.openapi import description

from .running import Process

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,unsupported_method,ignored_auth"
)
OTHER_PATHS = "unloadmodel|^/chat|^/completions|^/models|/openai/|/inference/|chat_completion"  # aliases, and unloading


def test_the_description_matches_the_server(tmp_path):
    """Check that there is no 5xx, no undescribed status or content type, and that no invalid request is accepted.

    A request that is valid by the schema may still be refused: a schema cannot say whether bytes are a picture, or
    whether a conversation fits the context."""
    with Process("--api-key", "key", "--ctx-size", "48") as server:
        command = [str(Path(sys.executable).with_name("st")), "run", f"{server.url}/openapi.json"]
        command += ["--header", "Authorization: Bearer key", "--checks", CHECKS, "--max-examples", "5", "--seed", "1"]
        command += ["--exclude-path-regex", OTHER_PATHS, "--phases", "coverage,fuzzing", "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-5000:]
        assert "generated" in done.stdout
        assert httpx2.get(f"{server.url}/health").status_code == 200


def test_bounds_are_in_json_schemas_words():
    schemas = description()["components"]["schemas"]
    text = json.dumps(schemas)
    assert not [word for word in ('"ge":', '"gt":', '"le":', '"lt":') if word in text]
    number, _ = schemas["ChatRequest"]["properties"]["n"]["anyOf"]
    assert number == {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES}
