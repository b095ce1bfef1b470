"""Share between tests against references: a pair with two pictures, this project's own run of it, and distances."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_ref.conformance.compare.conform import Conformance, conform
from llava_ref.conformance.engines.reference import Case, Run
from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec
from llava_ref.loading import load
from llava_ref.model import Llava
from llava_ref.tracing.distance import rel_rms

EVERYTHING = ("*", "*kq_soft_max")
PROMPT = "what is <image>\nthe color<image> of a"
OF_PICTURES = ("image.", "vision.", "projector.")
N_GREEDY = 8


def build(folder: Path, text: TextSpec, vision: VisionSpec, prompt: str = PROMPT) -> Case:
    """Make a random pair and as many random pictures as the prompt has places, no two of one shape."""
    pair = pairs.build(folder, text, vision)
    rng = np.random.default_rng(3)
    images = tuple(folder / f"{i}.png" for i in range(prompt.count("<image>")))
    for i, path in enumerate(images):
        Image.fromarray(rng.integers(0, 256, (31 + 20 * i, 44, 3), np.uint8)).save(path)
    return Case(pair.text, pair.mmproj, images, prompt)


def model_of(case: Case, profile: str, backend: str = "numpy", **quirks: str) -> Llava:
    return load(case.text, case.mmproj, backend=backend, threads=1, profile=profile, quirks=quirks)


def compared(case: Case, run: Run, fixed: Mapping[str, str] | None = None, **settings: Any) -> Conformance:
    """Return `conform`'s report of a run; the quirks `fixed` are set in every model that it tries."""

    def loaded(changed: Mapping[str, str]) -> Llava:
        return load(case.text, case.mmproj, backend="numpy", quirks={**(fixed or {}), **changed}, **settings)

    return conform(loaded, case, run)


def random_sizes(largest: int, wanted: Callable[[int, int], bool], count: int = 200) -> list[tuple[int, int]]:
    """Draw widths and heights from 1 on, small as often as large, of those that are `wanted`."""
    rng, sizes = np.random.default_rng(16), list[tuple[int, int]]()
    while len(sizes) < count:
        width, height = (int(n) for n in np.exp(rng.uniform(0, np.log(largest), 2)))
        sizes += [(width, height)] * wanted(width, height)
    return sizes


def trace(model: Llava, case: Case) -> dict[str, np.ndarray]:
    """Return every stage of this project's run of the whole case."""
    with model.trace(*EVERYTHING) as seen:
        model.request_logits(model.raw_request(case.prompt, case.images))
    return dict(seen)


def differing(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], bound: float) -> list[str]:
    """List the stages of another shape or type, or further apart than the bound."""
    return [
        name
        for name in theirs
        if ours[name].shape != theirs[name].shape
        or ours[name].dtype != theirs[name].dtype
        or not rel_rms(ours[name], theirs[name]) <= bound
    ]


def worst(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    return max(rel_rms(ours[name], theirs[name]) for name in theirs)
