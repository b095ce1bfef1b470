"""What an installation lacks is named as it is installed, wherever it is needed."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from llava_ref import extras
from llava_ref.benchmark.card import report
from llava_ref.benchmark.llama_cpp import library
from llava_ref.cli import main
from llava_ref.conformance.engines.hf import tiny
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.errors import ParameterError
from llava_ref.generation.grammar import JsonGrammars
from llava_ref.ops import get_ops

ROOT = Path(__file__).parents[1]


@pytest.fixture
def without(monkeypatch):
    """Makes modules absent: nothing finds or imports them."""
    find = importlib.util.find_spec

    def hide(*names):
        for name in names:
            for known in [known for known in sys.modules if known.split(".")[0] == name]:
                monkeypatch.delitem(sys.modules, known)
            monkeypatch.setitem(sys.modules, name, None)

        def found(name, package=None):
            return None if name in names else find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", found)
        for module in (extras, library):
            monkeypatch.setattr(module, "find_spec", found)

    return hide


def test_every_extra_is_one_of_the_project():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(get_args(extras.Extra)) == set(known) - {"dev", "notebook"}  # of which the program needs nothing


def test_an_installed_package_and_a_checkout_say_it_differently(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert extras.missing("server") == "the server extra is missing: pip install -e '.[server]'"
    monkeypatch.chdir(tmp_path)
    assert extras.install("fast") == f"pip install -e '{ROOT}[fast]'"
    monkeypatch.setattr(extras, "CHECKOUT", tmp_path)
    assert extras.missing("server") == "the server extra is missing: pip install 'llava-ref[server]'"


@pytest.fixture
def installed(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "CHECKOUT", tmp_path)


def test_the_server(without, installed, capsys):
    without("uvicorn")
    assert main(["serve"]) == 2
    expected = "error: serve: the server extra is missing: pip install 'llava-ref[server]' (there is no uvicorn)\n"
    assert capsys.readouterr().err == expected


def test_a_cluster(without, installed, capsys, tmp_path):
    without("ray")
    (tmp_path / "in.jsonl").write_text("{}\n")
    assert main(["batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--ray", "auto"]) == 2
    expected = "error: --ray: the cluster extra is missing: pip install 'llava-ref[cluster]' (there is no ray)\n"
    assert capsys.readouterr().err == expected


def test_a_schema(without, installed):
    without("llguidance")
    with pytest.raises(ParameterError, match=r"the server extra is missing: pip install 'llava-ref\[server\]'"):
        JsonGrammars(None).grammar({"type": "object"})


def test_fast_kernels(without, installed, monkeypatch):
    without("llvmlite")
    for name in [name for name in sys.modules if name.startswith(("llava_ref.ops.cpu", "llava_ref.kernels.cpu"))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ParameterError, match=r"'fast': the fast extra is missing: pip install 'llava-ref\[fast\]'"):
        get_ops("torch", "cpu", 1, 0, "fast")


def test_the_engines_of_conform(without, installed, monkeypatch):
    without("transformers", "xllamacpp")
    monkeypatch.delenv(library.VARIABLE, raising=False)
    said = "the conformance extra is missing: pip install 'llava-ref[conformance]'"
    assert tiny.missing() == f"{said} (there is no transformers)"
    assert str(oracle.missing()).startswith(f"{said} (there is no xllamacpp")
    with pytest.raises(library.LlamaCppError) as caught:
        library.find()
    assert str(caught.value).startswith(said)


def test_a_card(without, installed, monkeypatch):
    without("triton")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert report.missing() == "the gpu extra is missing: pip install 'llava-ref[gpu]' (there is no triton)"


def test_training():
    code = "import sys; sys.modules['sentencepiece'] = None; import training.vocabulary"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    expected = "error: training: the training extra is missing: pip install -e '.[training]'\n"
    assert (done.returncode, done.stderr) == (1, expected)
