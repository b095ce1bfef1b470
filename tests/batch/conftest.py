"""The command in a folder of its own."""

import pytest

pytest.importorskip("starlette", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.cli import main

from .requests import write


@pytest.fixture
def batch(tmp_path, monkeypatch, capsys):
    """Runs `batch` over lines, written to in.jsonl if there are any; gives exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(lines=None, *options, source="in.jsonl", output="out.jsonl"):
        if lines is not None:
            write(tmp_path / "in.jsonl", lines)
        status = main(["batch", source, "-o", output, "-t", "1", *options])
        return status, *capsys.readouterr()

    run.out, run.folder = tmp_path / "out.jsonl", tmp_path
    return run
