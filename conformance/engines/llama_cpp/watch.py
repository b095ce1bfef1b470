"""Watch llama.cpp's graphs from its evaluation callback."""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .library import LlamaLibrary
from .stages import Node, Recorder

Job = dict[str, Any]


class GraphWatch:
    """Keep copies of the tensors whose names match a pattern, from the evaluation callback; repeats are numbered."""

    def __init__(self, llama: LlamaLibrary) -> None:
        self._llama = llama
        self.patterns: list[str] = []
        self.pixels = False
        self.recorder = Recorder([])
        self.seen: list[dict[str, str]] = []
        self.arrays: dict[str, np.ndarray] = {}
        self._count: dict[str, int] = {}
        self.callback = llama.ffi.callback("ggml_backend_sched_eval_callback", self._call)

    @contextmanager
    def during(self, job: Job) -> Iterator[None]:
        """Watch for the tensors and stages that `job` asks for."""
        self.patterns, self.pixels = job.get("capture", []), job.get("pixels", False)
        self.recorder = Recorder(job.get("stages", []))
        self.seen, self.arrays, self._count = [], {}, {}
        yield
        self.arrays |= {f"stage {name}": array for name, array in self.recorder.arrays().items()}
        self.patterns, self.pixels, self.recorder = [], False, Recorder([])

    def _call(self, pointer: Any, ask: bool, _: Any) -> bool:
        if not self.patterns and not self.pixels and not self.recorder.globs:
            return not ask
        # Asking for every node also keeps ggml from fusing two of them, which would leave the first one unwritten.
        if not ask:
            self._look(self._llama.tensor(pointer))
        return True

    def _look(self, tensor: Any) -> None:
        name, op = self._llama.name(tensor), self._llama.op(tensor)
        if self.pixels and op == "IM2COL" and "pixels" not in self.arrays:
            self.arrays["pixels"] = self._llama.array(tensor.src[1])
        if any(fnmatchcase(name, pattern) for pattern in self.patterns):
            count = self._count[name] = self._count.get(name, -1) + 1
            numbered = f"{name}#{count}" if count else name
            self.seen.append({"name": numbered, "op": op})
            self.arrays[f"tensor {numbered}"] = self._llama.array(tensor)
        if self.recorder.globs:
            self.recorder.see(self._node(tensor, name, op))

    def _node(self, tensor: Any, name: str, op: str) -> Node:
        llama = self._llama
        return Node(
            name=name,
            op=op,
            sources=llama.sources(tensor),
            array=lambda axes: llama.array(tensor, axes),
            source=lambda i, axes: llama.array(tensor.src[i], axes),
        )
