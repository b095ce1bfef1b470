"""Ask llama.cpp: questions in, arrays out. Every call runs a process of its own (`worker`), because llama.cpp crashes
on some files; a crash is an OracleError like any other failure.

T positions fed, V vocabulary, N image rows, D decoder width, S image size.
"""

import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llava_ref.errors import LlavaError
from llava_ref.extras import absent

from ..process import run_program

Part = Sequence[int] | np.ndarray  # token ids, or rows (n, D) that stand in for embeddings; Qwen2-VL: (y, x, D)
Picture = np.ndarray | Path  # RGB bytes (H, W, 3), or a file for llama.cpp to decode


class OracleError(LlavaError):
    """llama.cpp is not installed, refused, crashed, or took too long."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How llama.cpp computes; numbers are those of its own enums."""

    flash_attention: int  # 0 off, -1 as it likes, which is on; text and vision
    cache_type: int  # ggml type of keys and values: 0 float32, 1 float16
    extra_buffers: bool  # repacked weights
    threads: int
    context: int
    batch: int
    micro_batch: int  # positions computed at once
    warmup: bool


EXACT = Settings(0, 0, False, 1, 1024, 1024, 1024, False)
"""The settings nearest to float32 arithmetic: the reference for correctness."""
DEFAULTS = Settings(-1, 1, True, 4, 512, 2048, 512, True)
"""llama.cpp's own defaults."""


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """A tensor of the graph. Repeated names are numbered in the order computed: `Qcur-0`, `Qcur-0#1`, ..."""

    name: str
    op: str  # MUL_MAT, ADD, RESHAPE, ROPE, ...
    array: np.ndarray  # float32, torch order, two to four axes


@dataclass(frozen=True, slots=True)
class TextResult:
    logits: np.ndarray  # (T, V) float32
    tokens: tuple[int, ...]  # greedy, after the prompt; end-of-sequence tokens do not stop it
    tensors: tuple[GraphTensor, ...]


@dataclass(frozen=True, slots=True)
class ImageResult:
    rows: np.ndarray  # (N, D) float32
    pixels: np.ndarray  # (3, S, S) float32: what the tower saw, before any rounding
    rgb: np.ndarray  # (H, W, 3) uint8: the decoded picture
    tensors: tuple[GraphTensor, ...]


@dataclass(frozen=True, slots=True)
class PromptResult:
    chunks: tuple[tuple[int, ...] | int, ...]  # token ids of a text chunk, or the number of rows of an image
    logits: np.ndarray  # (T, V) float32, every position
    tokens: tuple[int, ...]
    tensors: tuple[GraphTensor, ...]
    stages: dict[str, np.ndarray]  # by this project's names, see `llama_stages`


def missing() -> str | None:
    """Say why llama.cpp cannot be asked here; None if it can. Imports nothing."""
    return absent("conformance", ["xllamacpp", "llama_cpp_py_sync"])


class Oracle:
    """Ask llama.cpp about a text model and, if given, an mmproj. Every method raises OracleError."""

    def __init__(
        self, text: Path, mmproj: Path | None = None, settings: Settings = EXACT, *, timeout: float = 120.0
    ) -> None:
        self.text, self.mmproj, self.settings, self.timeout = text, mmproj, settings, timeout
        self.version: dict[str, str] = {}  # of the library, once it has answered
        self.log: tuple[str, ...] = ()  # its warnings and errors in the last answer

    def logits(
        self, prompts: Iterable[Sequence[Part]], *, greedy: int = 0, capture: Sequence[str] = ()
    ) -> list[TextResult]:
        """Return for each prompt, in a fresh context: logits of every position, and the `greedy` tokens that follow.

        Each part is computed at once; whether rows see one another is the projector's own rule, so rows of Gemma 3
        and Qwen2-VL need the mmproj. `capture` holds patterns (`blk.*`-like globs) of tensor names to keep."""
        jobs: list[dict[str, Any]] = []
        arrays: dict[str, np.ndarray] = {}
        for i, prompt in enumerate(prompts):
            named = {f"{i}.{j}": _array(part) for j, part in enumerate(prompt)}
            arrays |= named
            jobs.append({"kind": "logits", "parts": list(named), "greedy": greedy, "capture": list(capture)})
        return [
            TextResult(found["logits"], tuple(fact["tokens"]), _tensors(fact, found))
            for fact, found in self._run(jobs, arrays)
        ]

    def encode(self, pictures: Iterable[Picture], *, capture: Sequence[str] = ()) -> list[ImageResult]:
        """Run pictures through preprocessing, tower and projector."""
        arrays: dict[str, np.ndarray] = {}
        jobs = [
            {"kind": "encode", "pixels": True, "capture": list(capture), **_image(str(i), picture, arrays)}
            for i, picture in enumerate(pictures)
        ]
        return [
            ImageResult(found["rows"], found["pixels"], found["rgb"], _tensors(fact, found))
            for fact, found in self._run(jobs, arrays)
        ]

    def prompt(
        self,
        string: str,
        pictures: Sequence[Picture],
        *,
        bos: bool = True,
        greedy: int = 0,
        capture: Sequence[str] = (),
        stages: Sequence[str] = (),
        single_bos: bool = False,
    ) -> PromptResult:
        """Run a prompt end to end. `string` holds `<__media__>` for each picture; control tokens in it are parsed.

        `stages` holds patterns of this project's stage names. `single_bos`: a string that begins with BOS gets no
        other, as in llama.cpp's chat code (common/chat.cpp)."""
        arrays: dict[str, np.ndarray] = {}
        images = [_image(str(i), picture, arrays) for i, picture in enumerate(pictures)]
        job = {"kind": "prompt", "string": string, "images": images, "bos": bos, "greedy": greedy}
        job |= {"capture": list(capture), "single_bos": single_bos} | ({"stages": list(stages)} if stages else {})
        ((fact, found),) = self._run([job], arrays)
        chunks = tuple(tuple(chunk["tokens"]) if "tokens" in chunk else chunk["image"] for chunk in fact["chunks"])
        named = {name.removeprefix("stage "): array for name, array in found.items() if name.startswith("stage ")}
        return PromptResult(chunks, found["logits"], tuple(fact["tokens"]), _tensors(fact, found), named)

    def tokenize(self, strings: Iterable[str], *, bos: bool = True, special: bool = True) -> list[list[int]]:
        """Return the token ids of each string; `bos` puts a BOS before it if the vocabulary asks for one."""
        jobs = [{"kind": "tokenize", "string": string, "bos": bos, "special": special} for string in strings]
        return [fact["tokens"] for fact, _ in self._run(jobs, {})]

    def grids(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return rows and columns of what stands for pictures of these widths and heights, one chunk each."""
        ((fact, _),) = self._run([{"kind": "grids", "sizes": [list(size) for size in sizes]}], {})
        return [(rows, columns) for rows, columns in fact["grids"]]

    def _run(
        self, jobs: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]
    ) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        if (reason := missing()) is not None:
            raise OracleError("llama.cpp", "package", reason)
        request = {"text": str(self.text), "mmproj": str(self.mmproj or ""), "settings": asdict(self.settings)}
        with tempfile.TemporaryDirectory(prefix="llava-ref-oracle-") as name:
            folder = Path(name)
            (folder / "request.json").write_text(json.dumps({**request, "jobs": jobs}))
            np.savez(folder / "request.npz", **arrays)  # type: ignore[arg-type]
            self._start(folder)
            result = json.loads((folder / "result.json").read_text())
            with np.load(folder / "result.npz") as found:
                named = dict(found)
        self.version, self.log = result["version"], tuple(result["log"])
        return [(fact, _of_job(i, named)) for i, fact in enumerate(result["jobs"])]

    def _start(self, folder: Path) -> None:
        command = [sys.executable, "-m", "llava_ref.conformance.engines.llama_cpp.worker", str(folder)]
        ended = run_program(command, self.timeout, partial(OracleError, "llama.cpp"))
        if ended.code:
            raise OracleError("llama.cpp", "process", ended.how)


def _array(part: Part) -> np.ndarray:
    return part if isinstance(part, np.ndarray) and part.ndim > 1 else np.asarray(part, np.int32)


def _image(name: str, picture: Picture, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Name a picture for a job; its bytes go to `arrays` if they are given."""
    if isinstance(picture, Path):
        return {"file": str(picture)}
    arrays[name] = picture
    return {"rgb": name}


def _of_job(index: int, named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{index} "): array for name, array in named.items() if name.startswith(f"{index} ")}


def _tensors(fact: dict[str, Any], found: dict[str, np.ndarray]) -> tuple[GraphTensor, ...]:
    return tuple(GraphTensor(seen["name"], seen["op"], found[f"tensor {seen['name']}"]) for seen in fact["seen"])
