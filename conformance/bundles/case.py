"""What a golden bundle says of itself: `case.json`, its stages, and how far another engine may be from them.

T positions, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from llava_ref.generation.sampler import Sampling
from llava_ref.gguf.types import TYPES
from llava_ref.loading import load
from llava_ref.model import Llava

from ..compare.bounds import Arithmetic, Bound, Tolerances, bound
from ..compare.comparing import continued
from .recipes import N_GREEDY, Bundle

FORMAT = "llava_ref golden 1"
FLOAT32 = 2e-5
"""A whole run in float32, whatever the order of its sums: transformers and torch are within 3e-6."""
GGML = {"F32": 5e-3, "F16": 5e-3, "BF16": 2e-2}
GGML_32, GGML_256 = 6e-2, 0.1
"""A whole run by ggml's arithmetic, by the coarsest type of weights so far, to whose kind of blocks activations are
rounded. Two builds of llama.cpp differ from each other by a third of it."""
MARGINS = 1e-3
"""Logits by which margins may differ between two float32 runs."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a bundle's files come to."""

    facts: dict[str, Any]
    """Of `case.json`, all but the hashes of files."""
    stages: Mapping[str, np.ndarray]
    """And `token_ids` (T,) int64, -1 where a picture stands."""
    about: dict[str, str]
    """For the header of the trace file."""


def expected(folder: Path, bundle: Bundle, profile: str) -> Expected:
    """Runs the files in `folder`, float32, numpy. LlavaError for files that cannot be run."""
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
    return Expected(facts, {**trace, "token_ids": np.array(ids, np.int64)}, about)


def _margins(model: Llava, ids: Any, images: list[Path], greedy: Any) -> list[float]:
    """By how many logits each greedy token leads."""
    two = np.sort(continued(model, images, ids, greedy), axis=-1)[:, -2:]
    return [round(float(second_to_first), 4) for second_to_first in two[:, 1] - two[:, 0]]


def bounds(model: Llava, names: list[str], positions: int) -> dict[str, Any]:
    """For each stage, by the arithmetic of the engine that is checked: `whole`, of its own run from the files on, and
    `alone`, of the one stage computed from the bundle's arrays before it."""
    stages, types = {stage.name: stage for stage in model.stage_table()}, model.types()
    limits = accumulate((whole(types.get(name, "F32")) for name in stages), max)
    so_far = dict(zip(stages, limits, strict=True))

    def alone(name: str, theirs: Arithmetic) -> Bound:
        return bound(stages[name], types.get(name), Tolerances("float32", theirs, False, positions, jpeg=False))

    def row(name: str) -> dict[str, Any]:
        exact = name.startswith("image.") or name == "vision.pixels"
        loose = alone(name, "float32").limit, alone(name, "ggml").limit
        run = {"measure": "rel_rms", "float32": FLOAT32, "ggml": so_far[name]}
        step = {"measure": alone(name, "ggml").measure, "float32": loose[0], "ggml": loose[1]}
        return {"whole": step if exact else run, "alone": step}

    return {name: row(name.partition("#")[0]) for name in names}


def whole(kind: str) -> float:
    """Relative RMS that a run by ggml's arithmetic may be off by, once it has multiplied by weights of this type."""
    return GGML.get(kind) or (GGML_32 if TYPES[kind].weights <= 64 else GGML_256)
