"""Compute the contents of a golden bundle: `case.json`, the stages, and the bounds for another engine's stages.

T positions, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from llava_ref.generation.sampling import Sampling
from llava_ref.gguf.types import TYPES
from llava_ref.loading import load
from llava_ref.model import Llava

from ..compare.bounds import Arithmetic, Bound, Tolerances, bound
from ..compare.comparing import continued
from .bundle import N_GREEDY, Bundle

FORMAT = "llava_ref golden 1"
FLOAT32 = 2e-5
"""Bound of a whole run in float32, in any order of sums: transformers and torch are within 3e-6."""
GGML = {"F32": 5e-3, "F16": 5e-3, "BF16": 2e-2}
GGML_32, GGML_256 = 6e-2, 0.1
"""Bounds of a whole run in ggml's arithmetic, by the coarsest type of weights so far, to suit whose blocks activations
are rounded. Two builds of llama.cpp differ from each other by a third of it."""
MARGINS = 1e-3
"""Largest difference, in logits, of the margins of two float32 runs."""


@dataclass(frozen=True, slots=True)
class ExpectedBundle:
    """Holds the results of running a bundle's files."""

    facts: dict[str, Any]
    """The contents of `case.json` without the hashes of files."""
    stages: Mapping[str, np.ndarray]
    """The arrays by name, and `token_ids` (T,) int64, -1 at a picture's positions."""
    about: dict[str, str]
    """The header of the trace file."""


def expected(folder: Path, bundle: Bundle, profile: str) -> ExpectedBundle:
    """Run the files in `folder` in float32 with numpy. Raises LlavaError for files that cannot be run."""
    model = load(folder / "text.gguf", folder / "mmproj.gguf", backend="numpy", profile=profile)
    images = [folder / picture.name for picture in bundle.pictures]
    request = model.raw_request(bundle.prompt, images)
    ids = request.token_ids
    with model.trace(*bundle.stages) as trace:
        model.request_logits(request)
    greedy = model.answer(request, Sampling(), max_tokens=N_GREEDY).finish().token_ids
    facts = {
        "format": FORMAT,
        "about": bundle.about,
        "profiles": bundle.profiles,
        "quirks": model.settings["quirks"],
        "prompt": bundle.prompt,
        "images": [path.name for path in images],
        "token_ids": ids,
        "greedy": greedy,
        "margins": _margins(model, ids, images, greedy),
        "types": model.types(),
        "bounds": bounds(model, list(trace), len(ids)),
    }
    about = {"format": FORMAT, "arithmetic": "float32", "profile": profile, "prompt": bundle.prompt}
    return ExpectedBundle(facts, {**trace, "token_ids": np.array(ids, np.int64)}, about)


def _margins(model: Llava, ids: Any, images: list[Path], greedy: Any) -> list[float]:
    """Return the lead of each greedy token over the next likeliest, in logits."""
    two = np.sort(continued(model, images, ids, greedy), axis=-1)[:, -2:]
    return [round(float(second_to_first), 4) for second_to_first in two[:, 1] - two[:, 0]]


def bounds(model: Llava, names: list[str], positions: int) -> dict[str, Any]:
    """Return each stage's bounds by the arithmetic of the engine under test.

    `whole` applies to its own run from the files on, `alone` to one stage computed from the bundle's arrays before
    it."""
    stages, types = {stage.name: stage for stage in model.stage_table()}, model.types()
    limits = accumulate((whole(types.get(name, "F32")) for name in stages), max)
    so_far = dict(zip(stages, limits, strict=True))

    def alone(name: str, theirs: Arithmetic) -> Bound:
        return bound(stages[name], types.get(name), Tolerances("float32", theirs, False, positions, jpeg=False))

    def row(name: str) -> dict[str, Any]:
        exact = name.startswith("image.") or name == "vision.pixels"
        run = {"measure": "rel_rms", "float32": FLOAT32, "ggml": so_far[name]}
        float32, ggml = alone(name, "float32"), alone(name, "ggml")
        step = {"measure": ggml.measure, "float32": float32.limit, "ggml": ggml.limit}
        return {"whole": step if exact else run, "alone": step}

    return {name: row(name.partition("#")[0]) for name in names}


def whole(kind: str) -> float:
    """Return the bound, relative RMS, of a run in ggml's arithmetic from a product with weights of this type on."""
    return GGML.get(kind) or (GGML_32 if TYPES[kind].weights <= 64 else GGML_256)
