"""Use this project with other settings, or a trace file of any engine, as a reference."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llava_ref.errors import LlavaError
from llava_ref.generation.sampling import Sampling
from llava_ref.loading import load
from llava_ref.tracing.tracefile import TraceFile

from ..compare.bounds import arithmetic
from .llama_cpp import graph
from .reference import Case, ReferenceError, Run


class ThisProject:
    """Runs the same pair in this project with another backend, device, precision, profile or quirk."""

    def __init__(
        self, *, backend: str = "torch", device: str = "cpu", precision: str = "exact", profile: str = "llava",
        quirks: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._backend, self._device, self._precision, self._profile = backend, device, precision, profile
        self._quirks = dict(quirks or {})

    @property
    def name(self) -> str:
        changed = [f"{name}={value}" for name, value in self._quirks.items()]
        return " ".join(
            [
                "llava_ref",
                self._backend,
                *[self._device] * (self._device != "cpu"),
                self._precision,
                self._profile,
                *changed,
            ]
        )

    def run(self, case: Case, *, n_greedy: int = 0) -> Run:
        try:
            model = load(
                case.text,
                case.mmproj,
                backend=self._backend,
                device=self._device,
                precision=self._precision,
                profile=self._profile,
                quirks=self._quirks,
            )
            request = model.raw_request(case.rendered(model.quirks.image_order), case.images)
            with model.trace("*", "*kq_soft_max") as trace:
                model.request_logits(request)
            greedy: tuple[int, ...] = ()
            if n_greedy:
                reply = model.answer(request, Sampling(), max_tokens=n_greedy).finish()
                greedy = tuple(reply.token_ids)
        except LlavaError as error:
            raise ReferenceError(self.name, error.where, f"{error.field}: {error.problem}") from None
        flash = self._precision == "ggml" and model.quirks.flash_attention == "on"
        about = {
            "arithmetic": arithmetic(model.settings),
            "attention": "float16" if flash else "float32",
            **{key: value if isinstance(value, str) else json.dumps(value) for key, value in model.settings.items()},
        }
        return Run(self.name, about, trace, tuple(request.token_ids), greedy)


class Recorded:
    """Reads a trace file of any program. It must hold `token_ids`, which show whether the prompt is the same."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    def run(self, case: Case, *, n_greedy: int = 0) -> Run:
        """Return the file's arrays; the greedy tokens are the header's `generated`, if present.

        A file that holds llama.cpp's graphs (`llama_cpp.graph`) has each stage that llama.cpp computes. Raises
        ReferenceError for a file without token ids, with ids that are not numbers, or with a graph that is none."""
        try:
            trace = TraceFile(self.path)
            if "token_ids" not in trace:
                raise ReferenceError(str(self.path), "token_ids", "missing tensor: (T,) int64, -1 for a picture's rows")
            ids = tuple(int(token) for token in np.asarray(trace["token_ids"]).ravel())
            greedy = tuple(int(token) for token in trace.fact("generated", [])[:n_greedy])
            stages = graph.stages(trace) if "graph" in trace.about else trace
        except ReferenceError:
            raise
        except LlavaError as error:
            raise ReferenceError(error.where, error.field, error.problem) from None
        except (TypeError, ValueError, OverflowError) as error:  # NaN for an id, text for a token
            raise ReferenceError(str(self.path), "token_ids, generated", f"not numbers of tokens: {error}") from None
        arithmetic = "ggml" if trace.about.get("precision") == "ggml" else trace.about.get("arithmetic", "float32")
        about = trace.about | {"arithmetic": arithmetic}
        return Run(self.name, about, stages, ids, greedy, rounded=trace.rounded, chosen=stages is trace)
