"""llama.cpp beside this project: what is said to its process, how that may end, and a real one on a tiny pair."""

import json
import sys
from contextlib import closing

import pytest

import llava_ref
from llava_ref.benchmark.llama_cpp import library
from llava_ref.benchmark.llama_cpp.library import VARIABLE, LlamaCppError, LlamaLibraries, find
from llava_ref.benchmark.llama_cpp.process import LlamaProcess
from llava_ref.benchmark.workload import Workload
from llava_ref.conformance.engines.llama_cpp.oracle import missing
from llava_ref.errors import ParameterError

from ..support.tiny_pair import Tiny, write_pair

FAKE = """
import json, os, signal, sys
answers = {
    "load": {"laps": {"load": {"seconds": 2.0, "processors": 1.5}}, "seconds": 2.5, "others": 0.25},
    "run": {"laps": {"decode": {"seconds": 4.0, "processors": 2.0}}, "seconds": 5.0, "others": None},
    "about": {"peak_rss_mb": 7.0, "system": "AVX512", "same_tokens": 2},
}
print("loading", file=sys.stderr, flush=True)
for line in sys.stdin:
    open(sys.argv[1], "a").write(line)
    request = json.loads(line)
    if request.get("tokens") == [13]:
        os.kill(os.getpid(), signal.SIGSEGV)
    if request.get("tokens") == [14]:
        sys.exit(3)
    refused = {"error": "llama_decode returned 1"} if request.get("tokens") == [15] else None
    print(json.dumps(refused or answers.get(request.get("do"), {})), flush=True)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A process that answers as the worker does, and the lines that it was sent."""
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "libllama.so").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "libllama.so"))
    sent = tmp_path / "sent.jsonl"

    def start():
        command = [sys.executable, str(tmp_path / "fake.py"), str(sent)]
        return closing(LlamaProcess(tmp_path / "a.gguf", None, None, 5, 3, 2, command))

    start.sent = lambda: [json.loads(line) for line in sent.read_text().splitlines()]
    return start


def test_a_line_there_and_a_line_back(fake, tmp_path):
    with fake() as llama:
        loaded, run = llama.load(), llama.run([1, 2], [3])
        assert (loaded.laps["load"].seconds, loaded.laps["load"].processors, loaded.others) == (2.0, 1.5, 0.25)
        assert (run.laps["decode"].seconds, run.seconds, run.others) == (4.0, 5.0, None)
        path = str(tmp_path / "libllama.so")
        assert llama.about() == {"peak_rss_mb": 7.0, "system": "AVX512", "same_tokens": 2, "library": path}
        assert not llama.wheel
    assert llama._process.returncode == 0
    first, *rest = fake.sent()
    files = {"library": path, "text": str(tmp_path / "a.gguf"), "mmproj": None, "image": None}
    assert first == files | {"n_prompt": 5, "n_gen": 3, "threads": 2}
    assert rest == [{"do": "load"}, {"do": "run", "prompt": [1, 2], "tokens": [3]}, {"do": "about"}]


@pytest.mark.parametrize(
    "token, problem",
    [
        (13, "ended by SIGSEGV; last heard: loading"),
        (14, "ended with status 3; last heard: loading"),
        (15, "llama_decode returned 1"),
    ],
)
def test_a_process_that_fails_is_one_line(fake, token, problem):
    with fake() as llama, pytest.raises(ParameterError) as error:
        llama.run([1], [token])
    assert str(error.value) == f"--against: llama.cpp: {problem}"


def test_which_library(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(LlamaCppError, match="none.so, which is no file"):
        find()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    with pytest.raises(LlamaCppError, match="the conformance extra is missing: pip install .*; .*LLAMA_CPP_LIB"):
        find()


def test_a_library_without_the_functions_is_refused(tmp_path):
    (tmp_path / "libllama.so").write_bytes(b"no library")
    with pytest.raises(LlamaCppError, match="libllama.so: "):
        LlamaLibraries(tmp_path / "libllama.so", tower=False)


def test_neighbours_are_found_with_a_version_or_without(tmp_path):
    for name in ("libllama.so", "libggml.so.0", "libggml-base.so", "libggml-base.so.0.25"):
        (tmp_path / name).touch()
    found = [path.name for path in library._neighbours(tmp_path / "libllama.so")]
    assert found == ["libggml-base.so", "libggml.so.0"]
    assert library._beside(tmp_path / "xllamacpp.abi3.so", "mtmd") is None


N_PROMPT, N_GEN = 40, 6


@pytest.mark.oracle
@pytest.mark.skipif(missing() is not None, reason=missing() or "")
class TestRealLlamaCpp:
    """xllamacpp's library, on a tiny pair."""

    @pytest.fixture
    def pair(self, tmp_path, monkeypatch):
        monkeypatch.delenv(VARIABLE, raising=False)
        return write_pair(tmp_path, Tiny())

    def test_it_decodes_what_this_project_does(self, pair):
        model = llava_ref.load(pair[0], backend="numpy")
        workload = Workload(None, N_PROMPT, N_GEN)
        prompt = workload.prompt(model)
        tokens = workload.run(model, prompt, Untimed())
        with closing(LlamaProcess(pair[0], None, None, N_PROMPT, N_GEN, 1)) as llama:
            assert llama.load().laps.keys() == {"load"}
            for _ in range(2):  # a second run begins with an empty context again
                found = llama.run(prompt, tokens)
                about = llama.about()
                assert found.laps.keys() == {"prefill", "decode"} and about["same_tokens"] == N_GEN
            wrong = llama.run(prompt, [(token + 1) % 100 for token in tokens])
            assert wrong.seconds > 0 and llama.about()["same_tokens"] == 0
        assert llama.wheel and about["peak_rss_mb"] > 10 and "AVX2" in about["system"]
        assert about["ggml"].count(".") == 2

    def test_a_picture(self, pair, tmp_path):
        from PIL import Image

        Image.new("RGB", (20, 30), (200, 10, 10)).save(tmp_path / "picture.png")
        with closing(LlamaProcess(*pair, tmp_path / "picture.png", N_PROMPT, N_GEN, 1)) as llama:
            llama.load()
            laps = llama.run([1] * N_PROMPT, [1] * N_GEN).laps
        assert laps.keys() == {"preprocess", "encode", "prefill", "decode"}
        assert all(lap.seconds > 0 for lap in laps.values())

    def test_a_file_that_is_no_model(self, pair, tmp_path):
        (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
        with closing(LlamaProcess(tmp_path / "bad.gguf", None, None, 8, 1, 1)) as llama:
            with pytest.raises(ParameterError, match=r"--against: llama.cpp: cannot load .*bad.gguf; "):
                llama.load()

    @pytest.mark.parametrize("name", library.DEFAULTS)
    def test_structs_that_do_not_fit_are_refused(self, monkeypatch, name):
        """Defaults other than those in the library stand for fields that have moved."""
        monkeypatch.delenv(VARIABLE, raising=False)
        field = next(iter(library.DEFAULTS[name]))
        monkeypatch.setitem(library.DEFAULTS[name], field, (77,))
        with pytest.raises(LlamaCppError, match=f"{name} gives {field} .*, expected 77: its structs"):
            LlamaLibraries(find(), tower=True)


class Untimed:
    """A stopwatch that does not watch."""

    def lap(self, stage):
        return closing(self)

    def close(self):
        pass
