"""`bench` on a tiny pair: the contract's figures, what they are made of, and a clock of our own."""

import json
from contextlib import closing

import numpy as np
import pytest

import llava_ref
from llava_ref.benchmark.measure import Clocks, Lap, Repetition
from llava_ref.benchmark.measurement import measure
from llava_ref.benchmark.workload import Workload

CONTRACT = "load_s preprocess_s encode_s prefill_tok_s decode_tok_s peak_rss_mb read_gb_s n_threads".split()
PAIR = ["-m", "text.gguf", "--mmproj", "mmproj.gguf", "--backend", "numpy"]
SHORT = ["--n-prompt", "40", "--n-gen", "5", "-r", "2"]


@pytest.fixture
def memory(monkeypatch):
    """A memory that is read at 2, 4, 6, ... GB/s, and is never read while something is timed."""
    monkeypatch.setattr("llava_ref.tools.bench.Host", Memory)


class Memory:
    def __init__(self, threads):
        self.threads, self.n_reads, self.closed = threads, 0, False

    def ready(self):
        pass

    def read_gb_s(self):
        self.n_reads += 1
        return 2.0 * self.n_reads

    def device_memory_mb(self):
        return None

    def close(self):
        self.closed = True


def test_json_has_what_the_contract_lists(cli, memory):
    status, out, err = cli("bench", *PAIR, *SHORT, "--json", "-t", "1")
    got = json.loads(out)
    assert (status, err, out.count("\n")) == (0, "", 1)
    assert all(got[key] > 0 for key in CONTRACT), got
    assert (got["n_threads"], got["n_prompt"], got["n_gen"], got["precision"]) == (1, 40, 5, "exact")
    assert len(got["repetitions"]) == 2
    for stage, rate, n in ("prefill", "prefill_tok_s", 40), ("decode", "decode_tok_s", 5):
        seconds = [one["laps"][stage]["seconds"] for one in got["repetitions"]]
        assert got[rate] == pytest.approx(n / np.median(seconds))
    assert got["encode_s"] == pytest.approx(np.median([r["laps"]["encode"]["seconds"] for r in got["repetitions"]]))
    assert got["floor_share"] == pytest.approx(got["decode_tok_s"] / got["floor_decode_tok_s"])
    assert got["floor_decode_tok_s"] == pytest.approx(got["read_gb_s"] * 1e9 / got["floor_bytes_per_token"])
    assert len(got["read_gb_s_each"]) == 2 + got["refused"] and got["device_memory_mb"] is None


def test_a_model_without_a_tower(cli, memory):
    got = json.loads(cli("bench", *PAIR[:2], "--backend", "numpy", *SHORT, "--json")[1])
    assert got["preprocess_s"] is got["encode_s"] is None and got["decode_tok_s"] > 0


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_table_for_people(cli, memory, backend):
    status, out, err = cli("bench", *PAIR[:-1], backend, *SHORT, "--image", "picture.png")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert (status, err) == (0, "")
    assert {"load", "preprocess", "encode", "prefill", "decode", "read"} <= lines.keys()
    assert "tokens/s (40)" in lines["prefill"] and "GB/s" in lines["read"] and "memory allows" in lines["decode:"]
    assert "other load" in out and f"text.gguf: {backend}, cpu, exact, llava" in out


def test_what_is_timed_is_what_is_done(folder):
    """On a clock that counts its own readings, with every call noted: nothing else stands between two readings."""
    model = llava_ref.load(folder / "text.gguf", folder / "mmproj.gguf", backend="numpy")
    events = []
    clocks = Clocks(lambda: events.append("clock") or float(len(events)), lambda: 0.0, lambda: None, 2)

    class Watched(type(model)):
        def decode_image(self, source, where="image"):
            events.append("decode image")
            return super().decode_image(source, where)

        def encode(self, pixels, *rest):
            events.append("encode")
            return super().encode(pixels, *rest)

        def session(self):
            session, inner = super().session(), None
            inner = session.next
            session.next = lambda parts: events.append(len(parts[0])) or inner(parts)
            return session

    def load():
        events.append("load")
        model.__class__ = Watched
        return model

    with closing(Memory(1)) as memory:
        found = measure(load, Workload(folder / "picture.png", 40, 3), 1, memory, clocks)
    tick = "clock"
    once = [tick, tick, "decode image", tick, tick, "encode", tick, tick, 40, tick, tick, 1, 1, 1, tick, tick]
    assert events == [tick, tick, "load", tick, tick, *once, *once]
    assert memory.n_reads == 1 and memory.closed and found.read_gb_s == (2.0,)
    assert found.own.passes.seconds("decode") == [4.0], "three tokens and the clock's own reading"
    assert found.own.rate("decode", 3) == 0.75 and found.own.rate("encode", 2) == 1.0


class Rival:
    """A llama.cpp that takes as long as it is told to: a load 4 s, and 1, 2, 4, 8 s for the stages of a pass."""

    name, wheel, made = "llama.cpp", True, []

    def __init__(self, *asked):
        self.asked, self.calls, self.closed = asked, [], False
        self.made.append(self)

    def load(self):
        self.calls.append("load")
        return Repetition({"load": Lap(4.0, 1.0)}, 4.0, 0.0)

    def run(self, prompt, tokens):
        self.calls.append((len(prompt), len(tokens)))
        seconds = dict(zip(("preprocess", "encode", "prefill", "decode"), (1.0, 2.0, 4.0, 8.0), strict=True))
        return Repetition({stage: Lap(s, 2.0) for stage, s in seconds.items()}, 15.0, 0.0)

    def about(self):
        return {"peak_rss_mb": 100.0, "system": "AVX2", "ggml": "0.1", "library": "libllama.so", "same_tokens": 5}

    def close(self):
        self.closed = True


@pytest.fixture
def rival(monkeypatch, memory):
    monkeypatch.setattr(Rival, "made", [])
    monkeypatch.setattr("llava_ref.tools.bench.LlamaProcess", Rival)


def test_both_are_measured_in_turn(cli, rival):
    status, out, err = cli("bench", *PAIR, *SHORT, "-t", "1", "--against", "llama.cpp", "--json")
    got = json.loads(out)
    (llama,) = Rival.made
    refused = len(llama.calls) - 5
    assert llama.calls == ["load"] * llama.calls.count("load") + [(40, 5)] * (llama.calls.count((40, 5)))
    assert status == 0 and refused >= 0 and llama.closed and "no AVX-512 code: a native build, named by LLAMA" in err
    text, mmproj, image, *work = llama.asked
    assert (text.name, mmproj.name, image.name, work) == ("text.gguf", "mmproj.gguf", image.name, [40, 5, 1])
    theirs, ratio = got["reference"], got["ratio"]
    assert all(theirs[key] > 0 for key in CONTRACT) and theirs["n_threads"] == 1
    assert (theirs["load_s"], theirs["encode_s"], theirs["prefill_tok_s"], theirs["decode_tok_s"]) == (4, 2, 10, 0.625)
    assert theirs["processors"]["decode"] == 2.0 and got["processors"]["decode"] > 0
    assert theirs["read_gb_s"] == got["read_gb_s"] and len(theirs["repetitions"]) == len(got["repetitions"]) == 2
    for rate in "prefill_tok_s", "decode_tok_s":
        assert ratio[rate] == pytest.approx(got[rate] / theirs[rate])
    for cost in "load_s", "preprocess_s", "encode_s", "peak_rss_mb":
        assert ratio[cost] == pytest.approx(theirs[cost] / got[cost])
    assert got["profile"] == "llama.cpp", "so that both run as many blocks of the tower"


def test_a_table_of_both(cli, rival):
    status, out, _ = cli("bench", *PAIR, *SHORT, "--against", "llama.cpp", "--profile", "llava")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert status == 0 and lines["stage"].split() == ["stage", "this", "llama.cpp", "ratio", "processors"]
    assert lines["decode"].split()[2] == "0.625" and lines["decode"].endswith("| 2.00")
    assert "libllama.so, " in out and out.endswith("\nllama.cpp: the likeliest token was this project's 5 times of 5\n")
    assert "encode: without clip.vision.feature_layer llama.cpp runs a block less" in out


def test_a_rival_without_a_tower(cli, rival):
    got = json.loads(cli("bench", *PAIR[:2], *SHORT, "--backend", "numpy", "--against", "llama.cpp", "--json")[1])
    assert Rival.made[0].asked[1:3] == (None, None) and got["ratio"]["encode_s"] is None


def test_llama_cpp_is_measured_on_the_processor(cli, rival):
    asked = ["--against", "llama.cpp", "--device", "cuda"]
    problem = "error: --against: llama.cpp: is measured on the processor, not on --device cuda\n"
    assert cli("bench", *PAIR, *SHORT, *asked) == (2, "", problem) and not Rival.made


USER_ERRORS = {
    "--n-prompt: 0: expected a whole number from 1 to 1048576": ["--n-prompt", "0"],
    "--n-gen: -1: expected a whole number from 1 to 1048576": ["--n-gen", "-1"],
    "--repetitions: 0: expected a whole number from 1 to 1000": ["-r", "0"],
    "--n-prompt: 120: with 9 tokens behind it does not fit the context of 128": ["--n-prompt", "120", "--n-gen", "9"],
    "nowhere.png: file: No such file or directory": [*SHORT, "--image", "nowhere.png"],
}


@pytest.mark.parametrize("problem", USER_ERRORS)
def test_what_a_user_can_fix_is_one_line(cli, memory, problem):
    assert cli("bench", *PAIR, *USER_ERRORS[problem]) == (2, "", f"error: {problem}\n")


def test_a_picture_needs_a_tower(cli, memory):
    status, _, err = cli("bench", *PAIR[:2], "--image", "picture.png")
    assert status == 2 and err == "error: --image: picture.png: needs --mmproj, to be encoded\n"


def test_the_embedded_pair(cli):
    got = json.loads(cli("bench", "--json", "-r", "1")[1])
    assert all(got[key] > 0 for key in CONTRACT) and got["read_gb_s"] > 0.3
    assert got["floor_bytes_per_token"] > 1.8e6 and (got["n_prompt"], got["n_gen"]) == (512, 32)
