"""A tiny pair with a picture and two broken files, and the command line run beside them."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from llava_ref.cli import main

from ..support.tiny_pair import VICUNA, Tiny, write_pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_pair(folder, Tiny(template=VICUNA))
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 33, 3), np.uint8)).save(folder / "picture.png")
    (folder / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture
def cli(folder, capsys, monkeypatch):
    """Runs a command in the folder with the files; gives exit code, standard output, standard error."""
    monkeypatch.chdir(folder)

    def run(*arguments, stdin=None):
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status = main(list(arguments))
        out, err = capsys.readouterr()
        return status, out, err

    return run
