"""Measure the tables of docs/speed.md: each is a function that returns rows, lists of figures by name.

What is compared with llama.cpp is measured by `llava-ref bench --against llama.cpp`, in a process for each row.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import MMPROJ, SHAPES, make, names

from llava_ref.benchmark.card.models import MIXES
from llava_ref.conformance.pairs.smollm2 import find

Row = dict[str, Any]
FIGURES = (
    "load_s", "preprocess_s", "encode_s", "prefill_tok_s", "decode_tok_s", "peak_rss_mb", "first_pass_s", "floor_share",
    "processors",
)  # fmt: skip
NOISE = ("n_prompt", "n_gen", "read_gb_s", "noisy", "refused")
FOUR_LAYERS = "7b-4-layers-q4_k_m.gguf"
WHOLE = "7b-q4_k_m.gguf"
CONTEXTS = (256, 512, 1024, 2048, 4096, 8192)
GENERATED = 64, 32
"""Tokens decoded; in a short run."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and how."""

    folder: Path
    """Where the models are, or are written."""
    precision: str
    threads: int
    repetitions: int
    against: bool = True
    """Whether llama.cpp is measured too."""
    short: bool = False
    """Whether fewer models, lengths and repetitions do: a third of the time."""


def decoders(s: Settings) -> list[Row]:
    """Measure prefill and decode of every text model."""
    left_out = (MMPROJ, "7b-q8_0.gguf", "7b-f16.gguf", *([WHOLE] if s.short else []))
    small = find()
    files = [make(s.folder, name) for name in names() if name not in left_out]
    return [_bench(s, path) for path in ([small] if small else []) + files]


def tower(s: Settings) -> list[Row]:
    """Measure a picture through LLaVA-1.5's tower and projector."""
    return [_bench(s, make(s.folder, FOUR_LAYERS), "--mmproj", make(s.folder, MMPROJ), n_prompt=16, n_gen=1)]


def answer(s: Settings) -> list[Row]:
    """Measure a question about a picture to a model of LLaVA-1.5-7B's size: 640 positions and 64 tokens behind."""
    return [_bench(s, make(s.folder, WHOLE), "--mmproj", make(s.folder, MMPROJ), n_prompt=640)]


def contexts(s: Settings) -> list[Row]:
    """Measure prompts of growing length, and tokens behind them."""
    return [
        _bench(s, make(s.folder, FOUR_LAYERS), n_prompt=n, n_gen=16) for n in (CONTEXTS[::2] if s.short else CONTEXTS)
    ]


def pictures(s: Settings) -> list[Row]:
    """Measure the time to the first token of prompts with several pictures, this project alone."""
    return _own(s, "pictures", make(s.folder, FOUR_LAYERS), make(s.folder, MMPROJ))


def sequences(s: Settings) -> list[Row]:
    """Measure several sequences that decode at the same time."""
    files = [FOUR_LAYERS, FOUR_LAYERS.replace("q4_k_m", "q8_0")]
    against = ("--against",) if s.against else ()
    return [row | {"model": name} for name in files for row in _own(s, "sequences", make(s.folder, name), *against)]


def kernels(s: Settings) -> list[Row]:
    """Measure every kernel beside the read rate of memory, with all threads."""
    rows: list[Row] = [json.loads(line) for line in _lines("-m", "llava_ref.kernels.cpu.bench", "--json")]
    return [row for row in rows if row["threads"] == max(row["threads"] for row in rows)]


TABLES: dict[str, Callable[[Settings], list[Row]]] = {
    "decoders": decoders,
    "tower": tower,
    "answer": answer,
    "contexts": contexts,
    "pictures": pictures,
    "sequences": sequences,
    "kernels": kernels,
}
assert set(MIXES) == {"Q4_K_M", "Q8_0", "F16"} and "7b" in SHAPES, "the files named here are made"


def _bench(s: Settings, model: Path, *options: object, n_prompt: int = 512, n_gen: int = 0) -> Row:
    """Run `bench`, and keep its medians. The names of folders are left out."""
    lengths = ("--n-prompt", n_prompt, "--n-gen", n_gen or GENERATED[s.short], "-r", s.repetitions, "-t", s.threads)
    against = ("--against", "llama.cpp") if s.against else ()
    found = _run("-m", "llava_ref", "bench", "--json", "-m", model, *options, *lengths, *_how(s), *against)
    row: Row = {"model": model.name} | {name: found[name] for name in (*FIGURES, *NOISE)}
    row["others"] = max((one["others"] or 0.0 for one in found["repetitions"]), default=0.0)
    if "reference" in found:
        theirs = found["reference"]
        row["reference"] = {name: theirs[name] for name in (*FIGURES, "same_tokens", "system", "ggml")}
        row["reference"]["library"] = Path(theirs["library"]).name
        row["ratio"] = found["ratio"]
    return row


def _own(s: Settings, what: str, *files: object) -> list[Row]:
    found: list[Row] = _run(Path(__file__).with_name("alone.py"), what, *files, *_how(s), "-t", s.threads)
    return found


def _how(s: Settings) -> tuple[str, ...]:
    return ("--precision", s.precision)


def _run(*arguments: object) -> Any:
    """Run Python, and return the last line that it prints, which is JSON."""
    return json.loads(_lines(*arguments)[-1])


def _lines(*arguments: object) -> list[str]:
    """Run Python, and return what it prints, line by line."""
    command = [sys.executable, *map(str, arguments)]
    print("+", *map(_short, command[1:]), file=sys.stderr, flush=True)
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().splitlines()


def _short(argument: str) -> str:
    return Path(argument).name if argument.startswith("/") else argument
