"""A tiny pair with a picture, recorded, and the command line run beside them."""

import json

import numpy as np
import pytest
from PIL import Image

from llava_ref.cli import main

from ..support.tiny_pair import VICUNA, Tiny, write_pair

PAIR = ["-m", "text.gguf", "--mmproj", "mmproj.gguf"]
ASK = [*PAIR, "--image", "picture.png", "-p", "what is in the picture?", "-n", "4", "--backend", "numpy"]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with the pair and the record of an answer of four tokens."""
    folder = tmp_path_factory.mktemp("records")
    write_pair(folder, Tiny(template=VICUNA))
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 33, 3), np.uint8)).save(folder / "picture.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["generate", *ASK, "--record", "run.json"]) == 0
    return folder


@pytest.fixture
def cli(made, capsys, monkeypatch):
    """Runs a command in the folder with the files; gives exit code, standard output, standard error."""
    monkeypatch.chdir(made)

    def run(*arguments):
        capsys.readouterr()
        status = main(list(arguments))
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def replayed(cli, tmp_path):
    """Replays the record, or one that a function has changed; gives the same three."""

    def run(change=None, *options):
        path = tmp_path / "changed.json"
        with open("run.json", "rb") as file:
            value = json.load(file)
        path.write_text(json.dumps(value if change is None else change(value) or value))
        return cli("replay", str(path), *PAIR, *options)

    return run
