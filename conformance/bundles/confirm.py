"""Confirm golden bundles with other engines: llama.cpp and transformers.

The profiles of a bundle decide which engine can confirm it. llama.cpp runs the bundles of profile `llama.cpp` from the
files on. Its arithmetic rounds activations, so a whole run shows mainly that noise; therefore this program also
computes each stage from llama.cpp's own inputs with the same rounding (precision `ggml`), which must agree to float32.
transformers runs the others in float32, if its tower can (it always has a class token and a first norm), from the
bundle's pixels and token ids on, and those of profile `hf` from the picture and the prompt on.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava_ref.loading import load
from llava_ref.tracing.distance import distance
from llava_ref.tracing.tracefile import TraceFile

from ..compare.conform import conform
from ..engines.hf.engine import Transformers
from ..engines.llama_cpp.engine import LlamaCpp
from ..engines.reference import Case, ReferenceError, Run
from ..pairs.pairs import VisionSpec
from .bundle import EVERY_STAGE, N_GREEDY, Bundle


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Holds an engine's result for a bundle. Errors are relative RMS.

    `worst`, `at` and `limit` are the error, name and bound of the stage that comes nearest to its bound."""

    by: str
    stages: int
    worst: float
    at: str
    limit: float
    alone: float | None
    """Largest error of a stage computed from the engine's own inputs with its rounding; None if not needed."""

    def rounded(self) -> dict[str, Any]:
        """Return the entry for a manifest, errors rounded to two digits."""
        return {key: float(f"{x:.1e}") if isinstance(x, float) else x for key, x in asdict(self).items()}


def confirm(folder: Path, bundle: Bundle, case: Mapping[str, Any]) -> list[Confirmed]:
    """Run every engine that can confirm a bundle. `case`: the contents of `case.json`.

    Raises ReferenceError if an engine is absent or disagrees."""
    images = tuple(folder / name for name in case["images"])
    question = Case(folder / "text.gguf", folder / "mmproj.gguf", images, case["prompt"])
    stored, results = TraceFile(folder / "stages.safetensors"), []
    if "llama.cpp" in bundle.profiles:
        run = LlamaCpp(stages=EVERY_STAGE).run(question, n_greedy=N_GREEDY)
        results.append(_compared(run, stored, case, "ggml", _alone(question, run)))
    if bundle.profiles == ("hf",):
        run = Transformers(stages=EVERY_STAGE).run(question, n_greedy=N_GREEDY)
        results.append(_compared(run, stored, case, "float32", None))
    elif "llava" in bundle.profiles and isinstance(bundle.vision, VisionSpec) and bundle.vision.class_token:
        results.append(_compared(_from_pixels(question, stored), stored, case, "float32", None))
    return results


def _from_pixels(case: Case, stored: TraceFile) -> Run:
    """Run transformers on a bundle's pixels and token ids, because its own processing of pictures and text differs."""
    from ..engines.hf import from_gguf as hf_from_gguf  # they need transformers
    from ..engines.hf import stages as hf_stages

    model = hf_from_gguf.load(case.text, case.mmproj)
    ids = [model.image_token if token < 0 else int(token) for token in stored["token_ids"]]
    names = [name for name in stored if name.partition("#")[0] == "vision.pixels"]
    with hf_stages.HfWatch(model, EVERY_STAGE) as watch:
        output = model.forward(ids, np.stack([stored[name] for name in names]))
    shown = tuple(int(token) for token in stored["token_ids"])
    return Run(Transformers().name, {"arithmetic": "float32"}, watch.arrays, shown, model.greedy(output, N_GREEDY))


def _alone(case: Case, run: Run) -> float:
    """Return the largest error of a stage that this program computes from llama.cpp's inputs.

    Raises ReferenceError if a stage exceeds its bound."""
    same = {"kv_cache": "f32", "flash_attention": "off"}

    def ours(changed: Mapping[str, str]) -> Any:
        files = case.text, case.mmproj
        return load(*files, backend="numpy", profile="llama.cpp", precision="ggml", quirks=same | dict(changed))

    report = conform(ours, case, run)
    for finding in report.findings:
        raise ReferenceError(run.name, finding.stage, finding.problem)
    return max(s.own.rel_rms for s in report.stages if s.own is not None and s.bound.measure == "rel_rms")


def _compared(
    run: Run, stored: TraceFile, case: Mapping[str, Any], arithmetic: str, alone: float | None
) -> Confirmed:  # fmt: skip
    """Compare an engine's run with a bundle.

    Raises ReferenceError for the first stage that exceeds its bound, and for tokens that differ."""
    if list(run.token_ids) != case["token_ids"]:
        raise ReferenceError(run.name, "token_ids", f"{list(run.token_ids)}, the bundle has {case['token_ids']}")
    nearest, n_stages = (0.0, 0.0, "", 0.0), 0
    for name, want in stored.items():
        if name not in run.stages or name == "token_ids":
            continue
        limit = case["bounds"][name]["whole"]
        error = getattr(distance(run.stages[name], want, 0.0), limit["measure"])
        if not error <= limit[arithmetic]:
            raise ReferenceError(run.name, name, f"{limit['measure']} {error:.2g} over {limit[arithmetic]:.2g}")
        n_stages += 1
        if limit["measure"] == "rel_rms":
            nearest = max(nearest, (error / limit[arithmetic], error, name, limit[arithmetic]))
    if arithmetic == "float32" and list(run.greedy[: len(case["greedy"])]) != case["greedy"]:
        raise ReferenceError(run.name, "greedy", f"{list(run.greedy)}, the bundle has {case['greedy']}")
    return Confirmed(run.name, n_stages, nearest[1], nearest[2], nearest[3], alone)
