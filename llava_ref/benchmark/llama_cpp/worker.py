"""Run llama.cpp for `process.LlamaProcess`: apart, so that its memory is its own and a crash ends no other.

`python -m llava_ref.benchmark.llama_cpp.worker` answers every line of JSON on standard input with one on standard
output. The first says what is run; then `{"do": "load"}` and `{"do": "run", "prompt": [...], "tokens": [...]}` give a
repetition, and `{"do": "about"}` the rest. What went wrong is `{"error": "..."}`.
"""

import ctypes as c
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..machine import peak_rss_mb
from ..measure import Clocks, Stopwatch
from .library import IMAGE, Ids, LlamaLibraries, Pointer, PromptText

BATCH = 512
"""Positions of a prompt that are computed at once: llama.cpp's default."""


class LlamaEngine:
    """Loads a model, and runs the stages of `workload.Workload` on it."""

    def __init__(
        self, library: str, text: str, mmproj: str | None, image: str | None, n_prompt: int, n_gen: int, threads: int
    ) -> None:
        self.llama = LlamaLibraries(Path(library), tower=mmproj is not None)
        self._text, self._mmproj, self._image = text, mmproj, image
        self._n_prompt, self._n_gen, self.threads = n_prompt, n_gen, threads
        self.model: Any = None
        self._context: Any = None
        self._tower: Any = None
        self.watch = Stopwatch(Clocks(), lambda: None)
        self._same: list[bool] = []

    def load(self) -> dict[str, Any]:
        """Load everything anew: the model, the tower, and a context, which is empty."""
        self._free()
        return asdict(self.watch.repetition(self._load))

    def _load(self) -> None:
        llama = self.llama
        with self.watch.lap("load"):
            params, nothing = llama.llama_model_default_params(), Pointer()
            params.n_gpu_layers, params.devices = 0, c.cast(c.pointer(nothing), Pointer)
            self.model = llama.llama_model_load_from_file(os.fsencode(self._text), params)
            if not self.model:
                raise llama.failed(f"cannot load {self._text}")
            if self._mmproj is not None:
                self._load_tower(self._mmproj)
            self._context = self._new_context()

    def _load_tower(self, path: str) -> None:
        params = self.llama.mtmd_context_params_default()
        params.use_gpu = params.print_timings = params.warmup = False
        params.n_threads = self.threads
        self._tower = self.llama.mtmd_init_from_file(os.fsencode(path), self.model, params)
        if not self._tower:
            raise self.llama.failed(f"cannot load {path}")

    def _new_context(self) -> Any:
        llama, params = self.llama, self.llama.llama_context_default_params()
        params.n_ctx, params.n_ubatch = self._n_prompt + self._n_gen, BATCH
        params.n_batch = max(params.n_batch, self._n_prompt)
        context = llama.llama_init_from_model(self.model, params)
        if not context:
            raise llama.failed("cannot make a context")
        llama.llama_set_n_threads(context, self.threads, self.threads)
        wanted = {"n_ubatch": min(BATCH, llama.llama_n_batch(context)), "n_threads": self.threads}
        found = {name: getattr(llama, f"llama_{name}")(context) for name in wanted}
        if found != wanted or llama.llama_n_ctx(context) < params.n_ctx:
            raise llama.failed(f"a context has {found}, expected {wanted}: its structs are not those known here")
        return context

    def _free(self) -> None:
        for name, free in ("_tower", "mtmd_free"), ("_context", "llama_free"), ("model", "llama_model_free"):
            if getattr(self, name):
                getattr(self.llama, free)(getattr(self, name))
                setattr(self, name, None)

    def run(self, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, Any]:
        """Run every stage once: the picture, the prompt, and these tokens behind it."""
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self._context), False)
        return asdict(self.watch.repetition(lambda: self._stages(prompt, tokens)))

    def _stages(self, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        if self._image is not None:
            self._picture(Path(self._image))
        with self.watch.lap("prefill"):
            likeliest = self._decode(prompt)
        self._same = []
        with self.watch.lap("decode"):
            for token in tokens:
                self._same.append(likeliest == token)
                likeliest = self._decode([token])

    def _decode(self, tokens: Sequence[int]) -> int:
        """Run tokens at the next positions; return the likeliest one behind them."""
        llama = self.llama
        array = (c.c_int32 * len(tokens))(*tokens)
        status = llama.llama_decode(self._context, llama.llama_batch_get_one(c.cast(array, Ids), len(tokens)))
        if status:
            raise llama.failed(f"llama_decode returned {status}")
        n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        return int(np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, -1), (n_vocab,)).argmax())

    def _picture(self, path: Path) -> None:
        """Preprocess and encode a picture. Pillow decodes the file, as it does for this project."""
        from PIL import Image

        llama = self.llama
        with self.watch.lap("preprocess"):
            picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
            bitmap = llama.mtmd_bitmap_init(*picture.size, picture.tobytes())
            chunks = llama.mtmd_input_chunks_init()
            marker = llama.mtmd_default_marker()
            text = PromptText(marker, len(marker), False, True)
            status = llama.mtmd_tokenize(self._tower, chunks, c.byref(text), c.byref(Pointer(bitmap)), 1)
        if status:
            raise llama.failed(f"mtmd_tokenize returned {status}")
        found = [llama.mtmd_input_chunks_get(chunks, i) for i in range(llama.mtmd_input_chunks_size(chunks))]
        (image,) = (chunk for chunk in found if llama.mtmd_input_chunk_get_type(chunk) == IMAGE)
        with self.watch.lap("encode"):
            status = llama.mtmd_encode_chunk(self._tower, image)
            if status or not llama.mtmd_get_output_embd(self._tower):
                raise llama.failed(f"mtmd_encode_chunk returned {status}")
        llama.mtmd_input_chunks_free(chunks)
        llama.mtmd_bitmap_free(bitmap)

    def about(self) -> dict[str, Any]:
        """Return peak memory, the build, and how many tokens of the last run were the likeliest here too."""
        build = {"system": self.llama.system, "ggml": self.llama.ggml}
        return {"peak_rss_mb": peak_rss_mb(), "same_tokens": sum(self._same), **build}


def main(kind: type[LlamaEngine] = LlamaEngine) -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what llama.cpp prints is no answer
    engine: LlamaEngine | None = None

    def start(**settings: Any) -> dict[str, Any]:
        nonlocal engine
        engine = kind(**settings)
        return {}

    for line in sys.stdin:
        request = json.loads(line)
        do: Callable[..., dict[str, Any]] = start if engine is None else getattr(engine, request.pop("do"))
        try:
            answer = do(**request)
        except Exception as error:  # whatever it is, the process that asked says it in one line
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
